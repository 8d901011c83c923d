"""What a console can do to a command: lack letters, hang up, interrupt. None of it ends in a traceback."""

import os
import sys

PLAIN = {"✓": "ok", "✗": "NO", "·": "|", "…": "...", "→": "->", "×": "x", "√": "sqrt", "≤": "<=", "≥": ">="}


def say(line: str) -> None:
    """Print a line with the letters that the console has: cp1252 knows no ✓, and a mark must not stop a lesson."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        line = line.translate(str.maketrans(PLAIN)).encode(encoding, "replace").decode(encoding)
    print(line)


def run(main) -> None:
    """Exit with what a command's `main` returns; 130 after Ctrl-C, 1 where whoever reads the output has hung up (`| head`)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        try:
            code = main()
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            code = 130
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at exit would fail again
        code = 1
    sys.exit(code)
