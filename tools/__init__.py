"What a developer of lopa runs: checks, export, README, version lock (not part of the package)"
