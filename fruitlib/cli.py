"""`fruitlib sweep | compare | check | report | predict | data`. Bad input ends in one clear line and exit code 2."""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

from fruitlib import __version__
from fruitlib.core import files, machine, progress
from fruitlib.core.errors import InputError
from fruitlib.core.texts import show

RESUME_HINT = "Run the same command again: complete runs are kept, and a training resumes after its last epoch."


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 well, 1 a run failed, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        _say_first(options)
        return options.command(options)
    except InputError as problem:
        show(f"fruitlib: {problem}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as problem:
        if (problem.name or "fruitlib").partition(".")[0] == "fruitlib":
            raise
        show(f"fruitlib: {problem.name} is not installed: pip install 'fruitlib[lab]'", file=sys.stderr)
        return 2
    except NotADirectoryError as problem:
        show(f"fruitlib: {problem.filename}: is a file where a folder is needed", file=sys.stderr)
        return 2
    except (PermissionError, FileExistsError) as problem:
        show(f"fruitlib: {files.os_error_text(problem)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; nothing more is written at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as problem:
        if not files.is_disk_failure(problem):
            raise
        show(f"fruitlib: {files.os_error_text(problem)}: {RESUME_HINT}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nfruitlib: stopped. {RESUME_HINT}", file=sys.stderr)
        return 130


def _say_first(options: argparse.Namespace) -> None:
    """Say what begins, before the imports, which take seconds.

    A sweep says it always. Of other commands standard output is a result, and standard error of bad input one line; so
    they say it where a person watches.
    """
    words = options.begins.format(**vars(options))
    if options.command is _sweep:
        show(words)
    elif sys.stderr.isatty():
        show(words, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fruitlib", description="Photos in, executed notebooks and a report out.")
    parser.add_argument("--version", action="version", version=f"fruitlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    sweep = commands.add_parser("sweep", help="execute the notebooks for every combination of a params file")
    sweep.add_argument("params", type=Path, help="a params file, such as params/demo.yaml")
    sweep.add_argument("--data", help="a folder of photos or a table, in place of the params file's `data`")
    sweep.add_argument("--out", help="name of the folder in executed/ (default: the params file's name)")
    sweep.add_argument("--jobs", type=int, help="runs at a time (default: as many as GPUs, or cores)")
    sweep.add_argument("--scheduler", default="", metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786")
    sweep.set_defaults(command=_sweep, begins="reading {params}")

    report = commands.add_parser("report", help="write the pages of an executed sweep again")
    report.add_argument("sweep", help="a folder of executed/, such as executed/demo")
    report.set_defaults(command=_report, begins="writing the pages of {sweep}")

    _add_compare(commands)
    words = (
        "of a sweep: is a test photo found in training, are photos still the same? Of an exported file: is it whole?"
    )
    check = commands.add_parser("check", help=words, description=words)
    check.add_argument("what", help="a folder of executed/, such as executed/demo, or a file such as model.int8.onnx")
    check.set_defaults(command=_check, begins="checking {what}")

    _add_predict(commands)
    _add_data(commands)
    return parser


def _add_compare(commands) -> None:
    words = "do two runs, or any two CSVs of predictions, really differ? As in 07_compare"
    compare = commands.add_parser("compare", help=words, description=words)
    for side in "ab":
        what = "a run's folder, SWEEP/COMBINATION of folds, or a CSV with path, label, predicted"
        compare.add_argument(side, metavar=side.upper(), help=what)
    compare.add_argument("--split", choices=["val", "test"], default="val", help="of run folders (default: val)")
    for side in "ab":
        compare.add_argument(f"--backend-{side}", default="", help="torch, fp32 or int8, where there are several")
        named = "what its CSV calls them: path=file,label=truth,predicted=answer,p_apple=apple"
        compare.add_argument(f"--columns-{side}", default="", metavar="NAMES", help=named)
    compare.set_defaults(command=_compare, begins="reading the predictions of {a} and {b}")


def _add_predict(commands) -> None:
    words = "classify new photos with an exported file; needs no more than `pip install fruitlib` brings"
    codes = "Exit code: 0 every photo was read, 1 some were skipped, 2 bad input, 130 stopped."
    predict = commands.add_parser("predict", help=words, description=words, epilog=codes)
    predict.add_argument("model", type=Path, help="an exported file, such as model.int8.onnx")
    photos = "files, folders with all below them, patterns such as 'photos/*.jpg', or a CSV file with a column path"
    predict.add_argument("photos", nargs="*", metavar="PHOTOS", help=photos)
    rows = "write a row per photo: path, predicted, confidence, p_CLASS..., state (answer, unsure, skipped), reason"
    predict.add_argument("--csv", type=Path, metavar="FILE", help=rows)
    predict.add_argument("--cam", type=Path, metavar="FOLDER", help="write a picture per photo: where the model looked")
    predict.add_argument("--html", type=Path, metavar="FILE", help="write a page that runs the model in a browser")
    right = "say how many answers are right: a photo's folder, or the CSV's column label, names its class"
    predict.add_argument("--labels", action="store_true", help=right)
    predict.add_argument("--threads", type=int, default=0, help="threads to work with (default: one per core)")
    predict.set_defaults(command=_predict, begins="opening {model}")


def _add_data(commands) -> None:
    from fruitlib.data import fetch

    data = commands.add_parser("data", help="draw the practice photographs, or fetch a public data set")
    names = data.add_subparsers(required=True, metavar="NAME")
    for name, words in (("sample", "draw three fruits"), ("sample5", "draw five fruits, for the base model")):
        draw = names.add_parser(name, help=words)
        draw.set_defaults(command=_draw, name=name, begins="{name}: photos are drawn where there are none yet")
    words = "fetch a data set by git into data/; an interrupted fetch leaves nothing there"
    bring = names.add_parser("fetch", help=words, description=words)
    bring.add_argument("name", choices=list(fetch.DATASETS), metavar="NAME", help=", ".join(fetch.DATASETS))
    bring.add_argument("--url", help="another address of the same git repository, such as a mirror")
    bring.add_argument("--to", metavar="FOLDER", help="the folder to make (default: data/NAME)")
    bring.set_defaults(command=_fetch, begins="fetching {name}")


def _sweep(options: argparse.Namespace) -> int:
    with machine.quick_imports():
        from fruitlib.data import sources
        from fruitlib.sweep.driver import Options, run_sweep

    if options.jobs is not None and options.jobs < 1:
        raise InputError(
            f"--jobs {options.jobs}: give how many runs are executed at a time, 1 or more, or leave it out"
        )
    data = options.data
    if data is not None and not data.strip():
        raise InputError("--data is empty: name a folder of class folders")
    if data and data not in sources.NAMES:
        data = os.path.abspath(os.path.expanduser(data))  # as typed: from where the person stands, not from home()
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does, it ends the runs too
    return run_sweep(options.params, data, Options(options.out, options.jobs or 0, options.scheduler))


def _report(options: argparse.Namespace) -> int:
    with machine.quick_imports():
        from fruitlib.reporting import site

    index = site.build_site(Path(options.sweep).resolve())
    show("\n".join([*site.left_out(index.parent), files.display_path(index)]))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from fruitlib.evaluation import compare, wording

    sides = []
    for side in "ab":
        names = [text for text in getattr(options, f"columns_{side}").split(",") if text]
        if wrong := [text for text in names if "=" not in text]:
            raise InputError(f"--columns-{side} {wrong[0]}: wanted OURS=THEIRS, such as path=file,label=truth")
        source = getattr(options, side)
        source = os.path.abspath(os.path.expanduser(source))  # as typed: from where the person stands
        columns = dict(text.split("=", 1) for text in names)
        sides.append(compare.load_predictions(source, options.split, getattr(options, f"backend_{side}"), columns))
    pair = compare.match_photos(*sides)
    show(f"A: {pair.a.name}\nB: {pair.b.name}\n{wording.match_text(pair)}\n")
    show(wording.comparison_text(compare.compare_pair(pair)))
    rows = compare.disagreements(pair).to_dict("records")
    for row in rows[:20]:
        show(f"  {row['path']}: {row['label']}; A says {row['a']}, B says {row['b']}")
    if len(rows) > 20:
        print(f"  and {len(rows) - 20} more")
    return 0


def _check(options: argparse.Namespace) -> int:
    if options.what.endswith(".onnx"):
        from fruitlib.deploy import check_file

        lines, well = check_file.check(Path(options.what).resolve())
        show("\n".join(lines))
        return int(not well)
    from fruitlib.evaluation import leakage, wording

    check = leakage.check_sweep(Path(options.what).resolve(), progress.meter("photos read"))
    for words, lines in (("ALARM", wording.alarm_lines(check)), ("look at", wording.note_lines(check))):
        for line in lines:
            show(f"{words}: {line}")
    if not check.alarming:
        print(f"{check.n} photos read: no validation or test photo is in training, and none has changed")
    return int(check.alarming)


def _predict(options: argparse.Namespace) -> int:
    from fruitlib.deploy import predict_command

    wanted = {name: value for name, value in vars(options).items() if name not in ("command", "begins")}
    return predict_command.run(predict_command.Request(**wanted))


def _draw(options: argparse.Namespace) -> int:
    from fruitlib.data import sources

    print(files.display_path(sources.ready(options.name, progress.meter("photos drawn"))))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from fruitlib.data import fetch

    folder = fetch.fetch(options.name, options.url, options.to, progress=progress.meter("objects received"))
    print(f"in a params file: data: {folder if options.to else options.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
