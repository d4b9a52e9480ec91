"""Photos as people have them -> photos ready for training: checked, grouped, divided, decoded once, in batches.

In: a folder, a table or a known data set. Out: `manifest.csv`, a row per photo, and batches of tensors. Read `sources`
first, then `splits`; a training's batches come from `loader`.

    fetch            public photographs cloned by git, counted
    practice_photos  draws the practice photographs
    tree             a tree of folders, read once: which holds which photos
    part_names       folders' names that mean train, val or test, or merely photos
    layouts          a tree of folders -> classes, parts, groups; or one line why it is not clear
    sources          folder, table, fetched set -> rows of path, label, group, split; nothing opened
    tables           a CSV or TSV table -> the same rows, with boxes
    labels           labels that are one class though not written alike: joined, and said
    photo_checks     each photo opened and checked, its oddities named, its look hashed
    duplicates       copies and near-copies -> groups; label conflicts
    stratify         shares, folds and subsets; groups never divided, two million rows in seconds
    splits           the manifest: train, val, test, folds; what could not be met; what leaks
    preprocess       one photo -> the square of bytes a model sees
    cache            photos decoded once: a mapped file shared by all processes, or streamed
    augment          policies as data by (seed, epoch, slot); mixup, cutmix
    balance          class weights, samplers, over- and undersampling, SMOTE
    dataset          decoded photos in order, with their labels
    batch            what one process trains on in a step
    loader           an epoch's batches, prefetched while the network computes
"""
