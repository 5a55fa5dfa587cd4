"""Converts the case classes of the Autobahn test suite, written for Python 2, into a package that Python 3 runs.

    convert.py <source: autobahntestsuite/case> <target directory>

The rules are mechanical, and none knows a particular case:

- A text of Python 2 is a string of bytes. Here it stays a `str` whose characters are those bytes (Latin-1): a source file is read as
  Latin-1 and written as UTF-8, so each byte of a literal becomes one character, and `\\xce` already means that. `run.py` turns such
  text into bytes, and back, where a case touches the connection; the shims in `latin1.py` do so for `binascii` and the validator.
- Python 2 spellings become those of Python 3: print, xrange, unichr, `/` between lengths, implicit relative imports, and a base
  class list that names `object` first.
- The test data of the compression cases lies beside the cases, and what they receive is bytes to them.

A file that does not compile afterwards is an error: a new release of the suite wants a look.
"""

import pathlib
import re
import shutil
import sys

LEFT_OUT = ("case9_9_1",)  # a case that the suite itself has switched off

SHIM = '''"""Python 2 modules as the cases know them, over text whose characters are bytes."""

import binascii as _binascii

import pathlib as _pathlib

from autobahn.websocket.utf8validator import Utf8Validator as _Utf8Validator


def resource_filename(_, name):
    return str(_pathlib.Path(__file__).parent / name)


class binascii:
    @staticmethod
    def b2a_hex(text):
        octets = text.encode("latin-1") if isinstance(text, str) else text
        return _binascii.b2a_hex(octets).decode("ascii")


class Utf8Validator(_Utf8Validator):
    def validate(self, text):
        return super().validate(text.encode("latin-1"))
'''

RULES = [
    (r"^([ \t]*)print[ \t]*$", r"\1print()"),
    (r"^([ \t]*)print[ \t]+(?!\()(.+)$", r"\1print(\2)"),
    (r"\bxrange\(", "range("),
    (r"\bunichr\(", "chr("),
    (r"\(object, Case, ?\)", "(Case,)"),
    (r"(\blen\([\w.]+\)) / ", r"\1 // "),
    (r"^import binascii[ \t]*$", "from .latin1 import binascii"),
    (r"^from autobahn\.websocket\.utf8validator import Utf8Validator[ \t]*$", "from .latin1 import Utf8Validator"),
    (r"^import copy, os, pkg_resources, hashlib, binascii$", "import copy, os, hashlib, binascii\nfrom .latin1 import resource_filename"),
    (r"\bpkg_resources\.resource_filename\(", "resource_filename("),
    (r"^def onMessage\(self, msg, binary\):$", r"\g<0>\n   msg = msg.encode('latin-1')"),
    (r"^from (case\w*) import ", r"from .\1 import "),
    (r"^# coding=utf-8[ \t]*$", ""),
]


def convert(text):
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def without_left_out(text):
    """Drops the lines of `__init__.py` that name what is left out."""
    wanted = (line for line in text.splitlines() if not re.search(r"case9_9_1", line))
    return "\n".join(wanted) + "\n"


def main(source, target):
    target.mkdir(parents=True, exist_ok=True)
    (target / "latin1.py").write_text(SHIM, encoding="utf-8")
    count = 0
    for path in sorted(source.glob("*.py")):
        if path.stem in LEFT_OUT:
            continue
        text = convert(path.read_text(encoding="latin-1").replace("\r\n", "\n"))
        if path.stem == "__init__":
            text = without_left_out(text)
        compile(text, str(path), "exec")
        (target / path.name).write_text(text, encoding="utf-8")
        count += 1
    shutil.copytree(source.parent / "testdata", target / "testdata", dirs_exist_ok=True)
    if count < 100:
        sys.exit(f"{source}: only {count} files found; this is not the suite that was expected")
    print(f"converted {count} files")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
