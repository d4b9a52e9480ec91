"""COCO, YOLO, VOC and archives: what follows from them row by row, and one line where nothing can."""

import json
import os
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fruitlib.core import config
from fruitlib.core.errors import InputError
from fruitlib.data import annotations, coco, decoding, inspection, sources, splits, voc, yolo

ROW = ["path", "label", "split"]


def scan(data, **settings):
    return sources.scan(config.make({"data": str(data), **settings}))


def listed(data, **settings):
    return scan(data, **settings)[0][ROW].values.tolist()


def refused(data, **settings):
    with pytest.raises(InputError) as problem:
        scan(data, **settings)
    assert len(str(problem.value).splitlines()) == 1
    return str(problem.value)


def photos(folder, *paths, size=(100, 50), **options):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(path.encode())).integers(
            0, 255, (size[1], size[0], 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / path, **options)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


# ---- COCO


def coco_of(entries, names=("apple", "cherry"), **more):
    """COCO's content: entries are (file, category number or None, box), a photo per file of 100 x 50 pixels."""
    files = list(dict.fromkeys(file for file, _, _ in entries))
    images = [{"id": n, "file_name": file, "width": 100, "height": 50} for n, file in enumerate(files)]
    boxes = [
        {"id": n, "image_id": files.index(file), "category_id": category, "bbox": box, "iscrowd": 0}
        for n, (file, category, box) in enumerate(entries)
        if category is not None
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(names)]
    return {"images": images, "annotations": boxes, "categories": categories, **more}


BOXES = [("a.png", 0, [1, 2, 30, 40]), ("a.png", 1, [10.5, 0, 20.2, 9]), ("b.png", 1, [80, 20, 21.3, 30.9])]


def test_a_coco_file_gives_a_row_per_box(tmp_path):
    photos(tmp_path, "a.png", "b.png")
    rows, notes = scan(write(tmp_path / "instances.json", coco_of(BOXES)))
    assert rows[ROW].values.tolist() == [
        ["a.png#xywh=1,2,30,40", "apple", ""],
        ["a.png#xywh=10,0,21,9", "cherry", ""],
        ["b.png#xywh=80,20,20,30", "cherry", ""],  # cut to the photo, beyond which it reached by rounding
    ]
    assert rows["group"].tolist() == ["a.png", "a.png", ""] and notes == []


def test_what_coco_holds_besides_is_skipped_and_counted(tmp_path):
    photos(tmp_path, "a.png", "b.png", "c.png", "d.png")
    content = coco_of([*BOXES, ("c.png", None, None), ("d.png", 0, []), ("b.png", 0, [1, 1, 9, 9])])
    content["annotations"][-1]["iscrowd"] = 1
    content["annotations"].append({"id": 77, "image_id": 99, "category_id": 0, "bbox": [1, 1, 2, 2]})
    rows, notes = scan(write(tmp_path / "coco.json", content))
    assert rows["path"].tolist()[-2:] == ["b.png#xywh=80,20,20,30", "d.png"] and len(rows) == 4
    assert notes == [
        "coco.json: 1 boxes around crowds (iscrowd): skipped",
        "coco.json: 1 annotations of photos it does not list: skipped",
        "coco.json: 1 photos without an annotation: skipped",
        "coco.json: 1 annotations without a box: the whole photo counts",
    ]


@pytest.mark.parametrize("parts", [("train", "valid", "test"), ("train", "test")])
def test_roboflows_coco_is_read_with_its_parts(tmp_path, parts):
    for part in parts:
        photos(tmp_path, f"{part}/a.png", f"{part}/b.png")
        write(tmp_path / part / coco.ROBOFLOW, coco_of(BOXES))
    splits_of = {"train": "train", "valid": "val", "test": "test"}
    rows = [(f"{part}/{path}", label, splits_of[part]) for part in sorted(parts) for path, label in [
        ("a.png#xywh=1,2,30,40", "apple"), ("a.png#xywh=10,0,21,9", "cherry"), ("b.png#xywh=80,20,20,30", "cherry")]
    ]  # fmt: skip
    assert listed(tmp_path) == [list(row) for row in rows]
    assert [row[2] for row in listed(tmp_path / "train" / coco.ROBOFLOW)] == ["", "", ""]


def test_cocos_own_layout_is_read_and_one_file_of_it_with_photos_dir(tmp_path):
    for part in ("train2017", "val2017"):
        photos(tmp_path, f"{part}/a.png", f"{part}/b.png")
        write(tmp_path / "annotations" / f"instances_{part}.json", coco_of(BOXES))
    rows = listed(tmp_path)
    assert [row[0].split("#")[0] for row in rows] == [f"{p}2017/{n}.png" for p in ("train", "val") for n in "aab"]
    assert [row[2] for row in rows] == ["train"] * 3 + ["val"] * 3
    one = tmp_path / "annotations" / "instances_val2017.json"
    assert f"with photos_dir: {tmp_path}/train2017 (or {tmp_path}/val2017) all would be" in refused(one)
    assert listed(one, photos_dir=str(tmp_path / "val2017"))[0] == ["a.png#xywh=1,2,30,40", "apple", ""]


def broken(**change):
    content = coco_of(BOXES)
    content["annotations"][1].update(change)
    return content


def joined(name, entry, **change):
    content = broken(**change)
    content[name].append(entry)
    return content


def test_ids_of_coco_are_compared_as_numbers_and_none_is_no_id(tmp_path):
    photos(tmp_path, "a.png", "b.png", "c.png")
    content = joined("images", {"file_name": "c.png"}, category_id=1.0)
    content["annotations"].append({"category_id": 1, "bbox": [1, 1, 2, 2]})
    content["images"].append(dict(content["images"][0]))
    rows, notes = scan(write(tmp_path / "c.json", content))
    assert rows["photo" if "photo" in rows else "path"].str[:1].tolist() == ["a", "a", "b"]
    assert "c.json: 1 annotations of photos it does not list: skipped" in notes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "c.json: not valid JSON"),
        ("", "c.json: not valid JSON"),
        ("[" * 100_000, "c.json: lists within lists too deep"),
        ('{"images": [' + "9" * 5000 + "]}", "c.json: not valid JSON"),
        ([1], "c.json: JSON, but not COCO's"),
        ({"images": []}, "c.json: JSON, but not COCO's"),
        ({"images": [3], "annotations": [], "categories": []}, "an entry of images is 3, where COCO has a mapping"),
        (broken(category_id=9), "annotation 1: no category 9"),
        (broken(bbox=[1, 2, 3]), "annotation 1: bbox [1, 2, 3], where x, y, width and height in pixels are wanted"),
        (broken(bbox=[1, 2, 3, 1e99]), "annotation 1: bbox"),
        (broken(bbox=[1, 2, 3, float("nan")]), "annotation 1: bbox"),
        (broken(bbox="large"), "annotation 1: bbox large"),
        (broken(bbox=[1, 2, 30, 40], image_id=0), "annotation 0 and "),
        (coco_of([("../../etc/passwd", 0, [1, 1, 9, 9]), ("b.png", 1, [])]), "lies outside its folder: set photos_dir"),
        (coco_of([("/etc/passwd", 0, [1, 1, 9, 9]), ("b.png", 1, [])]), "lies outside its folder: set photos_dir"),
        (coco_of([("a.png", 0, []), ("a.png", 1, []), ("b.png", 1, [])]), "a.png has two labels, 'apple' and 'cherry'"),
        (coco_of(BOXES, names=("apple", " ")), "no category 1"),
        (joined("images", {"id": 1, "file_name": "c.png"}), "image id 1 is given twice, for b.png and c.png: give"),
        (joined("images", {"id": "1", "file_name": "c.png"}), "image id 1 is given twice, for b.png and c.png"),
        (joined("categories", {"id": 1.0, "name": "c"}), "category id 1 is given twice, for cherry and c: give each"),
        (joined("categories", {"name": "c"}, category_id=None), "annotation 1: no category None"),
        (coco_of([]), ": 0 classes, at least 2 are needed"),
        (coco_of([("", 0, [1, 1, 2, 2])]), "image 0 has no file_name"),
    ],
)
def test_a_broken_coco_file_is_one_line(tmp_path, content, words):
    photos(tmp_path, "a.png", "b.png")
    assert words in refused(write(tmp_path / "c.json", content))


def test_a_large_json_is_refused_and_outlines_are_not_kept(tmp_path, monkeypatch):
    content = coco_of(BOXES)
    content["annotations"][0]["segmentation"] = [[1] * 10]
    path = write(tmp_path / "c.json", content)
    assert "segmentation" not in coco.load_json(path)["annotations"][0]
    monkeypatch.setattr(coco, "MOST_BYTES", 100)
    assert "c.json: larger than" in refused(path)


# ---- YOLO

HALVES = {"a": "0 0.25 0.5 0.5 1\n1 0.75 0.5 0.5 1\n", "b": "1 0.5 0.5 0.2 0.4\n", "c": ""}


def yolo_set(folder, labels, parts=("train", "val"), layout="{part}/{kind}"):
    for part in parts:
        for name, text in labels.items():
            photos(folder, f"{layout.format(part=part, kind='images')}/{name}.png")
            if text is not None:
                write(folder / layout.format(part=part, kind="labels") / f"{name}.txt", text)


YOLO_ROWS = [("a.png#xywh=0,0,50,50", "apple"), ("a.png#xywh=50,0,50,50", "no"), ("b.png#xywh=40,15,20,20", "no")]


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("{part}/{kind}", "train: ../train/images\nval: ../val/images\nnc: 2\nnames: [apple, no]\n"),
        ("{part}/{kind}", "train: fruit-1/train/images\nval: fruit-1/val/images\nnames: ['apple', 'no']\n"),
        (
            "{kind}/{part}",
            "path: ../datasets/fruit\ntrain: images/train\nval: images/val\nnames:\n  0: apple\n  1: no\n",
        ),
        ("{kind}/{part}", "train: [images/train]\nval: /content/images/val\ntest:\nnames: {'0': apple, 1: no}\n"),
    ],
)
@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_yolo_set_gives_a_row_per_box_and_its_parts(tmp_path, layout, text, named):
    yolo_set(tmp_path, HALVES, layout=layout)
    data = write(tmp_path / "data.yaml", text)
    rows, notes = scan(data if named == "file" else tmp_path)
    places = {part: layout.format(part=part, kind="images") for part in ("train", "val")}
    wanted = [[f"{place}/{path}", label, part] for part, place in places.items() for path, label in YOLO_ROWS]
    assert rows[ROW].values.tolist() == wanted and notes == ["2 photos of data.yaml have no box: skipped"]
    assert set(rows["group"]) == {"", *(f"{place}/a.png" for place in places.values())}


def test_yolos_lists_outlines_and_photos_elsewhere(tmp_path):
    yolo_set(tmp_path / "set", {"a": "0 0.1 0.2 0.5 0.2 0.5 0.6\n", "b": "1.0 0.5 0.5 0.2 0.4\n"})
    write(tmp_path / "cfg" / "fruit.yaml", "train: lists/train.txt\nnames: [apple, no]\n")
    write(tmp_path / "set" / "lists" / "train.txt", "/home/joe/train/images/a.png\n\n/home/joe/train/images/b.png\n")
    data, place = tmp_path / "cfg" / "fruit.yaml", str(tmp_path / "set")
    assert "train: lists/train.txt is not in" in refused(data)
    rows = listed(data, photos_dir=place)
    assert rows == [["train/images/a.png#xywh=10,10,40,20", "apple", "train"],
                    ["train/images/b.png#xywh=40,15,20,20", "no", "train"]]  # fmt: skip
    write(tmp_path / "set" / "lists" / "train.txt", "images/a.png\n")
    assert "images/a.png fits train/images/a.png and val/images/a.png in" in refused(data, photos_dir=place)


def test_yolos_boxes_are_of_the_upright_photo_by_its_header_alone(tmp_path, monkeypatch):
    yolo_set(tmp_path, {"a": "0 0.5 0.5 1 1\n", "b": "1 0.5 0.5 1 1\n"}, parts=("train",))
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    photos(tmp_path, "train/images/c.jpg", exif=exif)
    (tmp_path / "train" / "images" / "d.jpg").write_bytes(b"no photo")
    for name in "cd":
        write(tmp_path / "train" / "labels" / f"{name}.txt", "0 0.5 0.5 1 1\n1 0.5 0.5 0.5 0.5\n")
    data = write(tmp_path / "data.yaml", "train: train/images\nnames: [x, y]\n")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda photo: pytest.fail("decoded"))
    rows, notes = scan(data)
    assert notes == ["1 photos of data.yaml do not show their size, and are listed without their boxes"]
    assert rows["path"].tolist() == [
        "train/images/a.png#xywh=0,0,100,50",
        "train/images/b.png#xywh=0,0,100,50",
        "train/images/c.jpg#xywh=0,0,50,100",
        "train/images/c.jpg#xywh=12,25,26,50",
        "train/images/d.jpg",
    ]


def test_a_poses_points_are_not_an_outline(tmp_path):
    yolo_set(tmp_path, {"a": "0 0.5 0.5 0.2 0.4 0.9 0.9\n", "b": "1 0.5 0.5 0.2 0.4 0.1 0.1\n"}, parts=("train",))
    data = write(tmp_path / "data.yaml", "train: train/images\nnames: [x, y]\nkpt_shape: [1, 2]\n")
    assert [row[0].split("#")[1] for row in listed(data)] == ["xywh=40,15,20,20"] * 2


def test_a_photo_whose_header_cannot_be_read_is_quarantined(tmp_path):
    (tmp_path / "d.jpg").write_bytes(b"no photo")
    assert yolo.upright_sizes([tmp_path / "d.jpg"]) == [None]
    assert inspection.inspect(tmp_path / "d.jpg")[0] == "quarantined"


YAML = "train: train/images\nnames: [x, y]\n"


@pytest.mark.parametrize(
    ("text", "labels", "words"),
    [
        ("names: [x, y", {}, ": not valid YAML"),
        ("epochs: 3\n", {}, "data.yaml: not a YOLO data set: wanted names (the classes), train and val"),
        ("- 1\n", {}, "data.yaml: not a YOLO data set"),
        ("train: a\nnames: {0: [x]}\n", {}, "data.yaml: names is no list of classes"),
        ("train: b\nnames:\n  0: x\n  1: y\n  0: z\n", {}, "data.yaml line 5: 0 is set already, in line 3: remove one"),
        ("a: &a [*a]\nnames: *a\ntrain: b\n", {}, "data.yaml line 1: an alias (*) names the value that it stands in"),
        ("names: " + "[" * 5000, {}, "data.yaml line 1: nested more than 30 deep"),
        ("names: " + "x" * 2_000_001, {}, "data.yaml: larger than 2 MB"),
        (YAML, {"a": "0 0.5 0.5 1\n"}, "train/labels/a.txt line 1: wanted class x y width height"),
        (YAML, {"a": "\n0 0.5 0.5 1 wide\n"}, "train/labels/a.txt line 2: wanted class x y width height"),
        (YAML, {"a": "0 50 50 10 10\n"}, "train/labels/a.txt line 1: wanted class x y width height, as shares"),
        (YAML, {"a": "0 nan 0.5 1 1\n"}, "train/labels/a.txt line 1: wanted"),
        (YAML, {"a": "2 0.5 0.5 1 1\n"}, "train/labels/a.txt line 1: class 2 is not among the names of data.yaml"),
        (YAML, {"a": "", "b": None}, "none of 2 photos has a box; looked for"),
        ("train: ../../etc\nnames: [x, y]\n", {"a": ""}, "train: ../../etc is not in"),
        ("train: nowhere\nval: train/images\nnames: [x, y]\n", {"a": ""}, "train: nowhere is not in"),
        ("train: data.yaml\nnames: [x, y]\n", {"a": ""}, "is not in"),
        ("train: train/images\nnames: [x, '', y]\n", HALVES, "names is no list of classes"),
        ("train: train/images\nnames: [x, [], y]\n", HALVES, "names is no list of classes"),
    ],
)
def test_a_broken_yolo_set_is_one_line(tmp_path, text, labels, words):
    yolo_set(tmp_path, labels, parts=("train",))
    assert words in refused(write(tmp_path / "data.yaml", text))


def test_a_folder_whose_data_yaml_is_broken_says_so(tmp_path):
    yolo_set(tmp_path, HALVES, parts=("train",))
    write(tmp_path / "data.yaml", "train: train\nnames: {0: x, 0: y}\n")
    assert "data.yaml line 2: 0 is set already" in refused(tmp_path)


# ---- VOC


def voc_of(name, objects, size=(100, 50)):
    """VOC's XML of a photo; objects are (label, xmin, ymin, xmax, ymax)."""
    text = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{right}</xmax><ymax>{bottom}"
        "</ymax></bndbox><part><name>stalk</name></part></object>"
        for label, x, y, right, bottom in objects
    )
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<?xml version='1.0'?><annotation><filename>{name}</filename>{sides}{text}</annotation>"


OBJECTS = [("apple", 1, 1, 100, 50), ("cherry", 11, 21, 30.5, 50)]
VOC_ROWS = [["a.png#xywh=0,0,100,50", "apple"], ["a.png#xywh=10,20,21,30", "cherry"]]


@pytest.mark.parametrize("images", ["JPEGImages", "images"])
def test_vocs_layout_is_read_with_its_division(tmp_path, images):
    for name, part in (("a", "train"), ("b", "val")):
        photos(tmp_path, f"{images}/{name}.png")
        write(tmp_path / "Annotations" / f"{name}.xml", voc_of("other.jpg", OBJECTS))
        write(tmp_path / "ImageSets" / "Main" / f"{part}.txt", f"{name}\n")
    rows, notes = scan(tmp_path)
    wanted = [[f"{images}/{path}", label, "train"] for path, label in VOC_ROWS]
    wanted += [[f"{images}/{path}".replace("a.png", "b.png"), label, "val"] for path, label in VOC_ROWS]
    assert rows[ROW].values.tolist() == wanted and notes == []


def test_roboflows_voc_is_read_with_its_parts(tmp_path):
    for part in ("train", "valid", "test"):
        photos(tmp_path, f"{part}/a.png", f"{part}/b.png")
        write(tmp_path / part / "a.xml", voc_of("a.png", [("apple", 0, 0, 101, 51), ("cherry", 1, 1, 9, 9)]))
        write(tmp_path / part / "b.xml", voc_of("b.png", []))
    rows, notes = scan(tmp_path)
    assert rows["path"].tolist()[:2] == ["test/a.png#xywh=0,0,100,50", "test/a.png#xywh=0,0,9,9"]
    assert rows["split"].tolist() == ["test"] * 2 + ["train"] * 2 + ["val"] * 2
    assert notes == ["3 XML files name no object: skipped"]


def test_xml_beside_photos_in_one_folder_is_read(tmp_path):
    photos(tmp_path, "a.png", "b.png")
    write(tmp_path / "x1.xml", voc_of("a.png", OBJECTS))
    write(tmp_path / "b.xml", voc_of("C:\\photos\\b.jpg", OBJECTS[:1]))
    assert listed(tmp_path) == [[*row, ""] for row in [*VOC_ROWS, ["b.png#xywh=0,0,100,50", "apple"]]]
    assert "the annotations of one photo: name their folder" in refused(tmp_path / "b.xml")


def test_of_photos_that_differ_in_their_ending_voc_names_one(tmp_path):
    photos(tmp_path, "a.jpg", "a.png")
    write(tmp_path / "a.xml", voc_of("a.jpg", OBJECTS))
    assert {row[0].split("#")[0] for row in listed(tmp_path)} == {"a.jpg"}
    write(tmp_path / "a.xml", voc_of("b.jpg", OBJECTS))
    assert "a.xml: a.jpg and a.png both fit it: write the right one into its filename" in refused(tmp_path)


BOMB = "<!DOCTYPE a [<!ENTITY b 'x'><!ENTITY c '&b;&b;&b;&b;'>]><annotation>&c;</annotation>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation>", "a.xml: not valid XML"),
        ("", "a.xml: not valid XML"),
        (BOMB, "a.xml: it declares a document type, which annotations do not need"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><annotation/>", "a.xml: it declares a document type"),
        ("<?xml version='1.0' encoding='martian'?><annotation/>", "a.xml: not valid XML"),
        ("<html/>", "a.xml: XML, but not Pascal VOC's (its root is html, not annotation)"),
        ("<annotation><object/></annotation>", "a.xml, object 1: no name"),
        (voc_of("a.png", [("x", 1, 1, "wide", 2)]), "a.xml, object 1: a box that is not four numbers"),
        (voc_of("a.png", [("x", 1, 1, "inf", 2)]), "a.xml, object 1: a box that is not four numbers"),
        (
            "<annotation>" + " " * 2**20 + "</annotation>",
            "a.xml: larger than 1,048,576 bytes: no annotations of one photo",
        ),
        (voc_of("a.png", [("x", 1, 1, 2, 2)]), ": 1 classes, at least 2 are needed"),
    ],
)
def test_a_broken_voc_file_is_one_line(tmp_path, text, words):
    photos(tmp_path, "a.png")
    write(tmp_path / "a.xml", text)
    assert words in refused(tmp_path)


def test_a_photo_that_voc_names_elsewhere_stays_in_its_folder(tmp_path):
    photos(tmp_path, "a.png")
    write(tmp_path / "a.xml", voc_of("a.png", OBJECTS))
    write(tmp_path / "b.xml", voc_of("../../etc/passwd", OBJECTS))
    rows, notes = scan(tmp_path)
    assert rows["path"].tolist()[-1].startswith("passwd#") and "1 of 2 photos were not found" in notes[0]


# ---- what is common


@pytest.mark.parametrize(("link", "target"), [("images/a.png", "others/a.png"), ("images", "others")])
def test_what_links_lead_to_outside_is_not_taken(tmp_path, link, target):
    photos(tmp_path, "others/a.png", "set/other/b.png")
    (tmp_path / "set" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "set" / link).symlink_to(tmp_path / target)
    entries = [("images/a.png", 0, []), ("other/b.png", 1, [])]
    data = write(tmp_path / "set" / "c.json", coco_of(entries))
    assert "c.json: images/a.png leads outside its folder by a link: if you trust it" in refused(data)
    (tmp_path / "set" / link).unlink()
    (tmp_path / "set" / link).symlink_to(tmp_path / "set" / ("other/b.png" if "/" in link else "other"))
    photos(tmp_path, "set/other/a.png")
    assert len(listed(data)) == 2


def test_boxes_of_annotations_can_be_divided_and_checked(tmp_path):
    entries = [(f"{n}.png", n % 2, [1, 1, 40, 40]) for n in range(24)]
    photos(tmp_path, *(file for file, _, _ in entries))
    settings = {"data": str(write(tmp_path / "c.json", coco_of(entries))), "near_duplicates": "ignore"}
    settings |= {"val_per_class": 3, "test_per_class": 3}
    manifest = splits.prepare_manifest(config.make(settings), tmp_path / "out")
    assert manifest["split"].value_counts().to_dict() == {"train": 12, "val": 6, "test": 6}
    assert set(manifest["status"]) == {"ok"}


def test_roboflows_copies_are_to_be_kept_together(tmp_path):
    names = [f"img{n}_jpg.rf.{digits}.png" for n in range(2) for digits in ("aa", "bb")]
    photos(tmp_path, *names)
    data = write(tmp_path / "c.json", coco_of([(name, n % 2, [1, 1, 9, 9]) for n, name in enumerate(names)]))
    rows, notes = scan(data)
    assert (
        "2 photos are Roboflow's changed copies of others, such as img0_jpg: group_pattern: <photo>.rf.<copy>"
        in notes[0]
    )
    rows, notes = scan(data, group_pattern="<photo>.rf.<copy>")
    assert notes == [] and rows["path"].str[:4].groupby(rows["group"]).nunique().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("names", "inside"),
    [(["top/a/1.jpg", "top/b/2.jpg", "__MACOSX/x"], "set/top"), (["a/1.jpg", "b/1.jpg"], "set"), (["t.csv"], "set")],
)
def test_a_zip_is_to_be_unpacked_first(tmp_path, names, inside):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    line = refused(tmp_path / "set.zip")
    assert f"unzip {tmp_path}/set.zip -d {tmp_path}/set" in line and line.endswith(f"then data: {tmp_path}/{inside}")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.zip", b"PK\x03\x04", "an archive: unpack it first"),
        ("x.tar.gz", b"\x1f\x8b", "an archive: unpack it first"),
        ("x.7z", b"7z", "an archive: unpack it first"),
        ("x.xlsx", b"PK", "save a spreadsheet as CSV UTF-8"),
        ("x.parquet", b"PAR1", "not a .csv or .tsv table, COCO JSON or a YOLO data.yaml"),
        ("x", b"", "not a .csv or .tsv table, COCO JSON or a YOLO data.yaml"),
    ],
)
def test_other_files_are_one_line_that_says_what_to_do(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in refused(tmp_path / name)


def test_a_folder_of_photos_with_a_table_names_the_table(tmp_path):
    photos(tmp_path, "photos/1.png", "photos/2.png")
    write(tmp_path / "train.csv", "id,label\n1,a\n2,b\n")
    assert refused(tmp_path).endswith(f"; train.csv may list its photos: data: {tmp_path}/train.csv")
    (tmp_path / "train.csv").unlink()
    write(tmp_path / "my_coco.json", coco_of(BOXES))
    assert refused(tmp_path).endswith(f"; my_coco.json may list its photos: data: {tmp_path}/my_coco.json")


@pytest.mark.parametrize("places", [("1.png", "2.png"), ("photos/1.png", "masks/2.png"), ("x/y/1.png", "x/y/2.png")])
def test_folders_without_classes_do_not_pass_over_their_table(tmp_path, places):
    photos(tmp_path, *places)
    write(tmp_path / "t.csv", "id,label\n1,a\n2,b\n")
    if places[1] == "masks/2.png":  # two folders of photos: classes as far as anyone can tell
        assert len(listed(tmp_path)) == 2
    else:
        line = refused(tmp_path)
        assert line.endswith(f"t.csv may list its photos: data: {tmp_path}/t.csv") or "(here lies t.csv)" in line


def test_roboflows_classes_in_a_part_are_named(tmp_path):
    photos(tmp_path, "train/1.png", "train/2.png", "valid/3.png")
    write(tmp_path / "train" / "_classes.csv", "filename, apple, cherry\n1.png, 1, 0\n2.png, 0, 1\n")
    assert refused(tmp_path).endswith(f"data: {tmp_path}/train/_classes.csv")
    rows = listed(tmp_path / "train" / "_classes.csv", columns={"path": "filename"})
    assert rows == [["1.png", "apple", ""], ["2.png", "cherry", ""]]


def test_a_folder_of_class_folders_is_no_annotation(tmp_path):
    photos(tmp_path, "apple/1.png", "cherry/2.png")
    write(tmp_path / "data.yaml", "names: [apple]\ntrain: x\n")
    write(tmp_path / "apple" / "1.xml", voc_of("1.png", OBJECTS))
    write(tmp_path / "annotations" / "1.xml", voc_of("1.png", OBJECTS))
    write(tmp_path / "meta.xml", "<meta/>")
    assert annotations.kind(tmp_path) == "" and len(listed(tmp_path)) == 2


@pytest.mark.parametrize(("name", "words"), [("no.json", "no such file"), ("no.yaml", "no such file")])
def test_an_annotation_file_that_is_missing_is_refused(tmp_path, name, words):
    assert words in refused(tmp_path / name)


# ---- anything

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["id", "image_id", "category_id", "file_name", "name", "bbox", "iscrowd", "width", "height"]
ENTRIES = st.lists(
    st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from([0, 1, "a.png", [1, 1, 2, 2]])), max_size=3
)
QUICK = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _rows_or_one_line(data):
    try:
        rows, notes = scan(data)
    except InputError as problem:
        assert len(str(problem).splitlines()) == 1, str(problem)
        return
    assert rows["label"].nunique() > 1 and all("\n" not in note for note in notes)


@QUICK
@given(JSON | st.fixed_dictionaries({"images": ENTRIES, "annotations": ENTRIES, "categories": ENTRIES}))
def test_any_json_is_rows_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    photos(folder, "a.png")
    _rows_or_one_line(write(folder / "c.json", content))


@QUICK
@given(st.text("0123. -en\tax\n", max_size=30), st.one_of(st.text(max_size=40), st.just(YAML)), JSON)
def test_any_yolo_set_is_rows_or_one_line(tmp_path_factory, labels, text, value):
    folder = tmp_path_factory.mktemp("any")
    yolo_set(folder, {"a": labels, "b": "1 0.5 0.5 1 1\n"}, parts=("train",))
    for content in (
        text,
        json.dumps({"names": value, "train": "train/images"}),
        json.dumps({"names": ["x", "y"], "train": value}),
    ):
        (folder / "data.yaml").write_bytes(content.encode("utf-8", errors="surrogatepass"))
        _rows_or_one_line(folder / "data.yaml")


TAGS = st.sampled_from(
    ["annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "filename", "size", "width"]
)
XML = st.recursive(
    st.text("a1.<&", max_size=4) | st.just("1"),
    lambda inner: st.builds(lambda tag, parts: f"<{tag}>{''.join(parts)}</{tag}>", TAGS, st.lists(inner, max_size=5)),
    max_leaves=10,
)


@QUICK
@given(st.binary(max_size=60) | XML.map(lambda text: f"<annotation>{text}</annotation>".encode()))
def test_any_xml_is_rows_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    photos(folder, "a.png")
    (folder / "a.xml").write_bytes(content)
    assert voc.folders_in(folder)
    _rows_or_one_line(folder)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".csv", "x" * 300 + ".json", "x" * 300 + ".yaml", "a\0.json"])
@pytest.mark.parametrize("more", [{}, {"photos_dir": "y" * 300}])
def test_names_that_no_file_can_have_are_one_line(name, more):
    assert refused(name, **more)


def test_a_pipe_among_yolos_photos_is_not_waited_for(tmp_path):
    yolo_set(tmp_path, HALVES, parts=("train",))
    (tmp_path / "train" / "images" / "b.png").unlink()
    os.mkfifo(tmp_path / "train" / "images" / "b.png")
    rows, notes = scan(write(tmp_path / "data.yaml", YAML))
    assert len(rows) == 3 and "1 photos of data.yaml do not show their size" in notes[-1]


@pytest.mark.parametrize("name", ["c.json", "data.yaml", "t.csv", "ImageSets/Main/train.txt"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    photos(tmp_path, "images/a.png")
    write(tmp_path / "Annotations" / "a.xml", voc_of("a.png", OBJECTS))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    assert name in refused(tmp_path if "/" in name else tmp_path / name)
