"""Read annotations of objects as rows of files and classes, in the process with limits that reads tables.

An image whose objects are all of one category has that class. Any other has no class, and its row says why.
Where crops are wanted, the row of an image has its boxes instead.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree
from xml.parsers import expat

from balancer.dataset.readers.crops import parse_box
from balancer.storage.regular_files import read_regular

NO_CLASS = "why it has no class"
"""Column of the images without a class."""

BOXES = "boxes"
"""Column of the boxes in an image: JSON, a list of category, left, top, width and height; of one that cannot
be cut out, only the category."""

MAX_NAMED = 3
MAX_XML_BYTES = 2_000_000
MAX_LIST_BYTES = 50_000_000
VOC_SPLITS = ("train", "val", "test")
VOC_LISTS, VOC_IMAGES = "ImageSets/Main", "JPEGImages"

LINEAGE = ("source", "run_id")

_COCO_KEYS = {
    *"images annotations categories id image_id category_id file_name name bbox iscrowd metadata".split(),
    *LINEAGE,
}

Row = list[tuple[str, object]]
Object = tuple[str, object]
"""A category, and a box as COCO has it."""


def coco_rows(file: BinaryIO, with_boxes: bool = False) -> Iterator[Row]:
    """A row for each image of a COCO file."""
    document = json.loads(file.read(), object_pairs_hook=_needed)
    if not isinstance(document, dict) or not all(
        _is_list_of_objects(document.get(name)) for name in ("images", "annotations", "categories")
    ):
        raise ValueError("not a COCO file: it lacks the lists images, annotations and categories")
    names = {_id(item, "id"): item.get("name") for item in document["categories"]}
    objects: defaultdict[object, list[Object]] = defaultdict(list)
    for item in document["annotations"]:
        name = names.get(_id(item, "category_id"))
        named = name if isinstance(name, str) else ""
        objects[_id(item, "image_id")].append((named, None if item.get("iscrowd") else item.get("bbox")))
    for item in document["images"]:
        if isinstance(name := item.get("file_name"), str):
            yield [*_row(name, objects.get(_id(item, "id"), ()), with_boxes), *_lineage(item)]


def _lineage(item: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """What an export of ours says of an image."""
    about = item.get("metadata")
    if isinstance(about, dict):
        yield from ((name, about[name]) for name in LINEAGE if isinstance(about.get(name), str))


def _id(item: Mapping[str, Any], key: str) -> object:
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"not a COCO file: {key} is {str(value)[:40]!r}, not a number or a text")
    return value


def voc_rows(folder: str, with_boxes: bool = False) -> Iterator[Row]:
    """A row for each annotation of a Pascal VOC `Annotations` folder, with the split that a list gives it."""
    splits = _voc_splits(Path(folder).parent / VOC_LISTS)
    images = _names_by_stem(Path(folder).parent / VOC_IMAGES)
    for name in sorted(os.listdir(folder)):
        if not name.lower().endswith(".xml"):
            continue
        stem = name[: -len(".xml")]
        try:
            path = os.path.join(folder, name)
            root = _parse_xml(read_regular(path, max_bytes=MAX_XML_BYTES, follow_links=False))
        except (OSError, ElementTree.ParseError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            yield [
                ("file_name", images.get(stem, stem)),
                ("class", ""),
                (NO_CLASS, f"{name}: {reason}"[:300]),
            ]
            continue
        objects = [((item.findtext("name") or "").strip(), _voc_box(item)) for item in root.iter("object")]
        row = _row(images.get(stem, stem), objects, with_boxes)
        yield [*row, ("split", splits.get(stem, ""))]


def _names_by_stem(folder: Path) -> dict[str, str]:
    """Images by their names without suffix: `filename` in annotations is often that of another computer."""
    try:
        names = [] if folder.is_symlink() else sorted(os.listdir(folder))
        return {os.path.splitext(name)[0]: name for name in names}
    except OSError:
        return {}


def _voc_box(item: ElementTree.Element) -> list[float] | None:
    """As COCO has it; the corners of Pascal VOC count from 1 and belong to the box."""
    try:
        left, top, right, bottom = (
            float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        return None
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]


def _row(name: str, objects: Iterable[Object], with_boxes: bool) -> Row:
    if with_boxes:
        boxes = [[category, *(parse_box(given) or ())] for category, given in objects]
        return [("file_name", name), (BOXES, json.dumps(boxes))]
    names = list(dict.fromkeys(category for category, _ in objects))
    if "" in names:
        return [
            ("file_name", name),
            ("class", ""),
            (NO_CLASS, "an object in it has no category, or none that is listed"),
        ]
    if len(names) == 1:
        return [("file_name", name), ("class", names[0]), (NO_CLASS, "")]
    return [("file_name", name), ("class", ""), (NO_CLASS, _why(sorted(names)))]


def _why(names: Sequence[str]) -> str:
    if not names:
        return "no object in it is annotated"
    more = ", …" if len(names) > MAX_NAMED else ""
    return f"its objects are of {len(names)} categories ({', '.join(names[:MAX_NAMED])}{more}), not of one"


def _needed(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Without outlines of objects, which are most of a file."""
    return {key: value for key, value in pairs if key in _COCO_KEYS}


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _parse_xml(data: bytes) -> ElementTree.Element:
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _refuse_declaration
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(str(error)) from error
    return ElementTree.fromstring(data)


def _refuse_declaration(*_: object) -> None:
    raise ValueError("it declares entities or a document type, which annotations do not need")


def _voc_splits(folder: Path) -> Mapping[str, str]:
    splits: dict[str, str] = {}
    for split in VOC_SPLITS if not (folder.is_symlink() or folder.parent.is_symlink()) else ():
        try:
            data = read_regular(folder / f"{split}.txt", max_bytes=MAX_LIST_BYTES, follow_links=False)
        except FileNotFoundError:
            continue
        for line in data.decode("utf-8-sig").splitlines():
            if words := line.split():
                splits.setdefault(words[0], split)
    return splits
