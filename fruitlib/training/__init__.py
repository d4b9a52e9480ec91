"""Photos -> a trained network: `best.pt`, `history.csv`, `predictions_val.csv`, `predictions_epochs.npz`.

Read `train` first: the recipe from first line to last.

    weights       weights from files, taken only where they fit; where they come from
    weight_files  files of weights as people have them: read, put under a network's own names
    packaged      pretrained weights that are installed as packages
    downloads     whether a library's published weights can be had, after one try
    proof         two photos show that pretrained weights are right, and their normalisation
    start         the weights a network starts from: loaded, proven, described
    zoo           torchvision's and timm's networks by name, what is known of their weights, their heads
    timm_zoo      timm's networks, through what timm makes public
    views         views of a photo that are averaged
    models        the 3-convolution base, End2End, ensembles; built, saved, loaded
    blocks        a network's blocks and layers; which of them train in which epoch
    features      a frozen network's features of photos, computed once and kept
    heads         heads that scikit-learn fits on features, as layers of torch
    losses        cross-entropy, focal, their mix, soft F1; smoothing, class weights
    optim         optimizers with groups by block, schedules, averaged weights
    precision     the precision training computes in, by rule; compilation
    micro_batch   gradients of a batch, in parts that fit the device
    evaluate      an epoch in numbers: batches tallied, validation photos predicted, each once
    checkpoint    last.pt: all that an interrupted training needs to resume
    tracking      history.csv, the machine's load, TensorBoard, W&B
    cams          heatmaps of the same few photos, kept while a network trains
    messages      lines printed for people, also from several processes
    group         one of several processes: joins the others, exchanges numbers, ends with them
    distributed   several processes: started, followed, restarted, all ended
    lr_finder     which learning rate? a range test
    fitted        the recipe of a run whose head is fitted on features
    train         the recipe
    scores        metrics.json: a run on its validation photos, beside its baselines
    probe         a baseline: logistic regression on frozen features of a pretrained network
    result        the answer of 02
"""

from fruitlib.core import machine

machine.keep_freed_memory()
