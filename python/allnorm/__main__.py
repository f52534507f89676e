"""The program allnorm that was installed with this package: `python3 -m allnorm`, and the command of that name."""

import os
import pathlib
import sys


def main() -> None:
    program = pathlib.Path(__file__).parent / "bin" / "allnorm"
    if not program.exists():
        sys.exit(f"allnorm: {program} is not there: this package was installed without the program")
    os.execv(program, [str(program), *sys.argv[1:]])


if __name__ == "__main__":
    main()
