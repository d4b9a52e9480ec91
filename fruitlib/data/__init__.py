"""Photos as people have them -> photos ready for training: checked, grouped, divided, decoded once, in batches.

In: a folder, a table, annotations or a known data set. Out: `manifest.csv`, a row per photo, and batches of tensors.
Read `sources` first, then `splits`; a training's batches come from `loader`.

    fetch            public photographs cloned by git, counted
    practice_photos  draws the practice photographs
    tree             a tree of folders, read once: which holds which photos
    part_names       folders' names that mean train, val or test, or merely photos
    layouts          a tree of folders -> classes, parts, groups; or one line why it is not clear
    sources          folder, table, fetched set -> rows of path, label, group, split; nothing opened
    annotations      what data may name beside folders: a table, COCO, YOLO, VOC -> the same rows, with boxes
    table_text       a table's cells as text, in whatever encoding and with whatever separator it was saved
    table_labels     several labels where one is wanted: columns of 0 and 1, lists in a cell
    tables           a CSV or TSV table -> rows with boxes; what any list of photos needs
    boxes            boxes in photos -> such rows
    coco             COCO JSON, also Roboflow's export
    yolo             a YOLO data.yaml with its label files
    voc              Pascal VOC's XML
    photo_paths      where the photos are that a table or annotations name
    labels           labels that are one class though not written alike: joined, with a note
    memory           what decoding photos takes of it, all threads together
    rgb              decoded pixels of any kind -> RGB of 8 bits
    completeness     is all of the picture in the file?
    decoding         a photo file -> its upright RGB pixels, or the reason why not
    inspection       one photo opened and checked, its oddities named, its look hashed
    processes        many photos opened at once, by processes of their own
    first_squares    squares made of many photos while they are checked, for the cache
    photo_checks     all photos of a table checked: by threads or processes, within bounded memory
    duplicates       copies and near-copies -> groups; label conflicts
    corrections      labels that a person corrected: kept in a file, honoured by every later split
    stratify         shares, folds and subsets; groups never divided, two million rows in seconds
    splits           the manifest: train, val, test, folds; what could not be met; what leaks
    objects          where the object is on a plain background
    geometry         a decoded photo -> the square that models see: cut out, resized, enhanced
    photo_square     a photo file's bytes -> that square; large JPEG files decoded at a reduced scale
    preprocess       one photo -> the square of bytes a model sees
    cache            photos decoded once: a mapped file shared by all processes, or streamed
    augment          policies as data by (seed, epoch, slot); mixup, cutmix
    balance          class weights, samplers, over- and undersampling, SMOTE
    dataset          decoded photos in order, with their labels
    batch            what one process trains on in a step
    loader           an epoch's batches, prefetched while the network computes
"""
