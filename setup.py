"Package metadata, all of it read from settings.ini"

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
config = ConfigParser()
config.read(root / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
readme = root / 'README.md'
licenses = {'apache2': 'Apache-2.0'}
statuses = {'2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}
# No address before one is decided
address = {} if cfg['user'] == 'OWNER' else {'url': cfg['git_url']}
# What is named NAME_requirements there is the extra NAME; developers need most of them
extras = {
    name.removesuffix('_requirements'): cfg[name].split()
    for name in cfg
    if name.endswith('_requirements')
}
extras['dev'] += [*extras['figures'], *extras['sweep'], *extras['web']]


class WithAssets(build_py):
    "The modules, and beside them assets.txt: who has only the wheel needs the list, too"

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file('assets.txt', f'{self.build_lib}/lopa/assets.txt')

    def get_source_files(self):
        return [*super().get_source_files(), 'assets.txt', 'settings.ini']


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    license=licenses[cfg['license']],
    classifiers=[
        f'Development Status :: {statuses[cfg["status"]]}',
        f'Intended Audience :: {cfg["audience"]}',
        f'Natural Language :: {cfg["language"]}',
        'Programming Language :: Python :: 3',
    ],
    packages=find_packages(include=['lopa*']),
    package_data={'lopa': ['py.typed']},
    cmdclass={'build_py': WithAssets},
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    zip_safe=False,
    **address,
)
