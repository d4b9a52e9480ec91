"""What people see: figures, widgets, and the offline site made of executed notebooks.

In: arrays and tables. Out: figures, which `style.save_figure` saves and shows, and HTML pages. Read `style` first.

    labels            names as they stand in figures: short, harmless, in a font that has their letters
    style             one look for all figures; saving; a figure that fails stops nothing
    split_figures     01: how the photos are divided
    training_figures  02: curves of a training, the learning rate finder
    metrics_figures   03, 06: intervals, confusion, reliability, thresholds, groups
    export_figures    05: size and latency
    graph_figure      05: the network operator by operator, and the error of each layer in INT8
    compare_figures   07: who is right where, what both say and look at
    effects_figures   08: effects, means, costs, learning curves
    gradcam_sheets    04: heatmaps by layer and by epoch
    shortcut_figures  04, 08: does the network look at the object?
    row_sheets        sheets of the photos that rows of a table name
    photo_trial       06: what the file to use says of single photos, and where it looked
    photo_sheets      sheets of photographs, of heatmaps and of feature maps
    sweep_list        00: the sweeps there are, with links
    cam_views         what the browser asks: a run's network or its INT8 file, about one photo
    cam_pictures      what the browser shows, as HTML and as a figure
    keys_box          controls that keep their keys in JupyterLab
    cam_browser       04, 07: the Grad-CAM browser of JupyterLab
    widgets           live curves, the live table, a photo to try
    label_desk        01, 03: labels that a person looks at, to keep, relabel or set aside
    markup            foreign HTML made harmless
    pictures          foreign pictures checked and made lighter
    page_figures      a notebook's picture on its page: enlarged, its numbers as CSV
    pages             an executed notebook -> what its page says
    sprites           photos and heat on sheets beside the pages
    explore           what the report's script works with
    site_checks       what was checked, and what it was made with
    site_index        what the index says
    site_photos       what the page of a run's photos says
    site              executed notebooks -> an offline site
"""
