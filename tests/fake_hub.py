"A model hub on loopback, as much of it as huggingface_hub's client asks for here"

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO = r'/(?:api/models/)?([\w.-]+/[\w.-]+)'


def sha1(data):
    return hashlib.sha1(data).hexdigest()


class Hub:
    "Repositories in memory; `asked` lists every request"

    def __init__(self):
        self.repos, self.asked, self.tokens = {}, [], set()

    def commit(self, name, files):
        "A new state of a repository; its name is a hash"
        old = self.repos.setdefault(name, {})
        content = {**old.get('main', {}), **files}
        text = repr(sorted((k, hashlib.sha256(v).hexdigest()) for k, v in content.items()))
        sha = sha1(text.encode())
        old['main'] = old[sha] = content
        old['head'] = sha
        return sha

    def __enter__(self):
        handler = type('Bound', (Handler,), {'hub': self})
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f'http://127.0.0.1:{self.server.server_port}'
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    "Answers of the hub"

    hub: Hub
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def reply(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {'Content-Length': str(len(data)), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def missing(self, code='RepoNotFound'):
        self.reply({'error': 'not here'}, 404, X_Error_Code=code, X_Error_Message='not here')

    def note(self):
        self.hub.asked.append(f'{self.command} {self.path.partition("?")[0]}')
        self.hub.tokens.add(self.headers.get('authorization'))

    def do_GET(self):
        self.note()
        path = self.path.partition('?')[0]
        if found := re.fullmatch(REPO + r'/revision/([^/]+)', path):
            self.tell(*found.groups())
        elif found := re.fullmatch(REPO + r'/tree/([^/]+)', path):
            files = self.hub.repos[found[1]][found[2]]
            known = [{'path': k, 'size': len(v), 'oid': sha1(v)} for k, v in files.items()]
            self.reply([{'type': 'file', **about} for about in known])
        elif found := re.fullmatch(REPO + r'/resolve/([^/]+)/(.+)', path):
            self.send(*found.groups())
        else:
            self.missing()

    do_HEAD = do_GET

    def tell(self, name, revision):
        "What a repository holds"
        if name not in self.hub.repos:
            return self.missing()
        repo = self.hub.repos[name]
        if revision not in repo or revision == 'head':
            return self.missing('RevisionNotFound')
        files = [{'rfilename': k} for k in repo[revision]]
        sha = repo['head'] if revision == 'main' else revision
        return self.reply({'id': name, 'sha': sha, 'siblings': files, 'private': False})

    def send(self, name, revision, file):
        "A file"
        repo = self.hub.repos.get(name, {})
        if file not in repo.get(revision, {}):
            return self.missing('EntryNotFound')
        data = repo[revision][file]
        sha = repo['head'] if revision == 'main' else revision
        tag = f'"{sha1(data)}"'
        return self.reply(data, ETag=tag, X_Repo_Commit=sha)

    def do_POST(self):
        self.note()
        body = self.rfile.read(int(self.headers.get('content-length') or 0))
        path = self.path.partition('?')[0]
        if path == '/api/repos/create':
            self.create(json.loads(body))
        elif path == '/api/validate-yaml':
            self.reply({'errors': [], 'warnings': []})
        elif re.fullmatch(REPO + '/preupload/main', path):
            known = {'uploadMode': 'regular', 'shouldIgnore': False}
            self.reply({'files': [{'path': f['path'], **known} for f in json.loads(body)['files']]})
        elif found := re.fullmatch(REPO + '/commit/main', path):
            self.take(found[1], body)
        else:
            self.missing()

    def create(self, wanted):
        if not self.headers.get('authorization'):
            return self.reply({'error': 'who are you?'}, 401)
        name = '/'.join(filter(None, [wanted.get('organization', 'someone'), wanted['name']]))
        self.hub.repos.setdefault(name, {})
        return self.reply({'url': f'{self.hub.address}/{name}', 'name': name})

    def take(self, name, body):
        lines = [json.loads(line)['value'] for line in body.splitlines() if line]
        files = {v['path']: base64.b64decode(v['content']) for v in lines if 'content' in v}
        sha = self.hub.commit(name, files)
        url = f'{self.hub.address}/{name}/commit/{sha}'
        self.reply({'commitUrl': url, 'commitOid': sha, 'success': True})
