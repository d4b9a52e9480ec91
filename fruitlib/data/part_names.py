"""Names of folders that are parts of a division (`training_set`, `seg_test`, `Val images`), not classes."""

import re
from collections.abc import Iterable

from fruitlib.core.texts import normal

WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
    "unlabelled": ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"),
}
PART_OF = {word: part for part, words in WORDS.items() for word in words}
# Words that say only that there are photos: train_images is train, a folder `images` is one folder too many.
COLLECTION = {"set", "sets", "data", "dataset", "datasets", "folder", "folders", "split", "splits", "part", "parts"}
COLLECTION |= {"image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures", "jpg", "png"}
NEVER_A_CLASS = {"all", "dataset", "datasets", "split", "splits"}
BESIDE_PHOTOS = {"annotation", "annotations", "label", "labels", "meta", "metadata", "doc", "docs", "split", "splits"}
BESIDE_PHOTOS |= {"paper", "papers", "script", "scripts", "src", "code", "notebooks", "models", "runs", "csv", "xml"}


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, divided at spaces, signs, digits and capitals: `trainImages_2` is two."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", normal(name)).lower())


def part_of(name: str) -> str | None:
    """The part that a name means by itself: train, val, test or unlabelled; None where it is another name."""
    part, rest, _ = _divided(name)
    return part if not rest else None


def parts_among(names: Iterable[str]) -> dict[str, str]:
    """Those of some folders beside each other that are parts, and which.

    `fruit_train` is one if `fruit_test` stands beside it, or another name that ends so (`seg_val`, `test`); `train
    station` and `steam train` beside `bus` are none.
    """
    divided = {name: _divided(name) for name in names}
    of_rest: dict[tuple, set[str]] = {}
    for part, rest, _ in divided.values():
        if part:
            of_rest.setdefault(rest, set()).add(part)
    endings = {part for part, _, ends in divided.values() if part and ends}
    parts = {}
    for name, (part, rest, ends) in divided.items():
        if part and (not rest or len(of_rest[rest]) > 1 or (ends and len(endings) > 1)):
            parts[name] = part
    return parts


def _divided(name: str) -> tuple[str | None, tuple[str, ...], bool]:
    """The part that one word of a name means (else None), the words that say more, and whether it ends in the part."""
    found, rest, ends = [], [], False
    for word in words_of(name):
        if part := PART_OF.get(word) or _joined_part(word):
            found.append(part)
            ends = True
        elif word not in COLLECTION:
            rest.append(word)
            ends = False
    return (found[0] if len(found) == 1 else None), tuple(rest), ends


def _joined_part(word: str) -> str | None:
    """The part in a word such as `trainset`."""
    return next((PART_OF[part] for part in PART_OF if word.startswith(part) and word[len(part) :] in COLLECTION), None)


def is_collection(name: str) -> bool:
    """Whether a name says only that there are photos, of which part at most: `images`, `train`, `dataset`."""
    words = words_of(name)
    return bool(words) and all(word in COLLECTION or PART_OF.get(word) or _joined_part(word) for word in words)


def is_never_a_class(name: str) -> bool:
    """Whether a name is that of a whole: `all`, `splits`, `dataset`."""
    return " ".join(words_of(name)) in NEVER_A_CLASS


def is_fold(name: str) -> bool:
    """Whether a name is that of a fold: `fold_3`."""
    return bool(re.fullmatch(r"fold[\W_]*\d+", normal(name).lower()))


def stands_beside_photos(name: str) -> bool:
    """Whether a folder of this name that holds no photos is nothing to remark on: `annotations`, `papers`."""
    words = words_of(name)
    return bool(words) and all(word in BESIDE_PHOTOS or word in COLLECTION for word in words)
