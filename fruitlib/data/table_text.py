"""The cells of a CSV or TSV table as text, however a spreadsheet saved them: encoding, separator, header, lines.

Read are UTF-8 and UTF-16 with or without their mark; Windows-1252 only where its letters can be nothing else. Fields
are separated by a comma, a semicolon or a tab, or as Excel's first line `sep=;` says.
"""

import codecs
import csv
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import pandas as pd

from fruitlib.core.errors import InputError

CHUNK = 200_000  # rows read at a time, so that columns nobody asked for never fill the memory
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}  # UTF-32's first: UTF-16's begins like it
MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx and .ods, and .xls, begin
# A letter with an accent between plain ones, as western Europe writes: in any other one-byte encoding this is rare.
_ACCENTED = re.compile("(?<=[A-Za-z])[ßà-öø-ÿ]{1,2}|[À-ÖØ-Þß-öø-ÿ](?=[a-z])")
_HINT = re.compile(r'\A"?sep=(.)"?\s*\Z', re.IGNORECASE)


@dataclass(frozen=True)
class Sheet:
    """A table that can be read: how, its columns' titles, the lines above its first row, and notes for people."""

    path: Path
    encoding: str
    separator: str
    hinted: bool  # the first line is Excel's `sep=;`
    header: tuple[str, ...]
    lines: int
    notes: tuple[str, ...] = ()

    def open(self) -> TextIO:
        """The table's text from its header on."""
        file = open(self.path, encoding=self.encoding, newline="")  # noqa: SIM115 - the caller closes it
        if self.hinted:
            file.readline()
        return file

    def chunks(self) -> Iterator[pd.DataFrame]:
        """The rows as text, `CHUNK` at a time, indexed from 0 over all; columns are numbered as in the header, and one
        more is filled where a row is longer than the header.

        Raises:
            InputError: a row much longer than the header, a quotation mark that is never closed.
        """
        width = len(self.header)
        options = {"header": None, "names": range(width + 1), "index_col": False, "dtype": str, "na_filter": False}
        try:
            with self.open() as file, warnings.catch_warnings():
                warnings.simplefilter("ignore", pd.errors.ParserWarning)  # a first row too long: the extra column
                next(filter(any, csv.reader(file, delimiter=self.separator)))
                yield from pd.read_csv(file, sep=self.separator, chunksize=CHUNK, **options)
        except (ValueError, csv.Error) as problem:  # pandas' parsing errors are ValueErrors
            raise InputError(f"{self.path}: {self._explained(problem)}") from None

    def _explained(self, problem: Exception) -> str:
        summary = str(problem)
        if too_long := re.search(r"in line (\d+), saw", summary):
            return f"line {self.lines + int(too_long[1])}: more fields than the header has columns"
        if opened := re.search(r"inside string starting at row (\d+)", summary):
            return f"line {self.line(int(opened[1]))}: a quotation mark is opened and never closed"
        return " ".join(summary.split())

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """(line on which it begins, fields) of the header and every row; blank lines are none.

        Raises:
            InputError: bytes that are none of the table's encoding.
        """
        with self.open() as file:
            lines, above = csv.reader(file, delimiter=self.separator), int(self.hinted)
            begins = above + 1
            try:
                for fields in lines:
                    if len(fields) > 1 or (fields and fields[0].strip()):
                        yield begins, fields
                    begins = above + lines.line_num + 1
            except csv.Error:  # a field longer than any real one
                yield begins, []
            except UnicodeError:
                problem = f"damaged after line {begins}: not {self.encoding.upper()}: save it again as CSV UTF-8"
                raise InputError(f"{self.path}: {problem}") from None

    def line(self, index: int) -> int:
        """The line on which row `index` begins, counted from 1 as an editor does."""
        found = 1
        for position, (begins, _) in enumerate(self.records(), -1):
            found = begins
            if position == index:
                break
        return found


def open_sheet(path: Path, wanted: set[str]) -> Sheet:
    """How a table is to be read; of the separators, the one that shows most of the `wanted` columns.

    Raises:
        InputError: no such table, a spreadsheet under the name of a table, or an encoding that is not clear.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such table of photos")
    try:
        encoding, notes = _encoding(path)
        with open(path, encoding=encoding, newline="") as file:
            hint = _HINT.match(file.readline(100))
    except OSError as problem:
        raise InputError(f"{path}: the table cannot be read ({problem.strerror}): check its permissions") from None
    except UnicodeError as problem:
        raise InputError(f"{path}: not a table in UTF-8 ({problem}): save it as CSV UTF-8") from None
    separators = hint[1] if hint and hint[1] in ",;\t|" else "\t" if path.suffix.lower() == ".tsv" else ",;\t"
    tries = []
    for separator in separators:
        sheet = Sheet(path, encoding, separator, bool(hint), (), 0, tuple(notes))
        with sheet.open() as file:
            lines = csv.reader(file, delimiter=separator)
            try:
                header = [name.strip() for name in next(filter(any, lines), [])]
            except (UnicodeError, csv.Error) as problem:
                raise InputError(f"{path}: not a table in UTF-8 ({problem}): save it as CSV UTF-8") from None
        tries.append(replace(sheet, header=tuple(header), lines=lines.line_num + bool(hint)))
    return max(tries, key=lambda sheet: (len(wanted & set(sheet.header)), len(sheet.header)))


def _encoding(path: Path) -> tuple[str, list[str]]:
    """The encoding of a table, and a note where it is not the usual one."""
    with open(path, "rb") as file:
        start = file.read(4096)
    if start.startswith(SPREADSHEETS):
        raise InputError(f"{path}: a spreadsheet under the name of a table: open it and save it as CSV UTF-8")
    wide = next((name for mark, name in MARKS.items() if start.startswith(mark)), "")
    if not wide and b"\0" in start:
        evens, odds = start[::2].count(0), start[1::2].count(0)
        wide = "utf-16-le" if odds > len(start) / 4 > evens else "utf-16-be" if evens > len(start) / 4 > odds else ""
        if not wide:
            raise InputError(f"{path}: not a text file (it holds zero bytes): save the table as CSV UTF-8")
    if wide:
        return wide, [f"{path.name} was read as {wide.upper()[:6]}"]
    reason = _not_utf8(path)
    if not reason:
        return "utf-8-sig", []
    if example := _western(path):
        return "cp1252", [f"{path.name} is not UTF-8 and was read as Windows-1252, with words such as {example}"]
    raise InputError(f"{path}: not UTF-8 text ({reason}): save the table as CSV UTF-8")


def _not_utf8(path: Path) -> str:
    """Why the bytes of a file are not UTF-8; "" where they are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as problem:
        return problem.reason
    return ""


def _western(path: Path) -> str:
    """A word with an accent, where all that is not ASCII in a file can only be that, in Windows-1252; else ""."""
    found = ""
    try:
        with open(path, encoding="cp1252") as file:
            for line in file:
                if not _ACCENTED.sub("", line).isascii():
                    return ""
                if not found and not line.isascii():
                    found = next(word for word in re.findall(r"\w+", line) if not word.isascii())
    except UnicodeDecodeError:
        return ""
    return found
