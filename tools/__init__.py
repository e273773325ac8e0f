"What a developer of lopa runs: checks, executed notebooks, README, version lock (not part of the package)"
