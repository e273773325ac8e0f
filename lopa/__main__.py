"`python -m lopa` is `lopa`"

from .cli import main

main()
