"""Predictions -> numbers one may trust. Nothing here needs torch.

In: `predictions_*.csv`, results tables, labels and probabilities as arrays. Out: numbers with intervals, as dataclasses
and tables; `wording` alone puts them into sentences. Read `metrics` and `intervals` first.

    metrics         counts and rates from labels and predictions (NumPy only)
    intervals       shares and macro-F1 with 95 % intervals, for new groups of photos
    significance    two models on the same photos: McNemar, sign flips of groups; Holm
    crossed         differences on new seeds and new groups at once
    selection       how optimistic the best of many runs and epochs looks for having been chosen
    baselines       what a result has to beat: the commonest class, the mean colour, frozen features
    prevalence      other class shares than the photos': where the model is used, what training had
    calibration     confidence against accuracy: gap, reliability, calibration error, temperature; thresholds
    crossval        folds pooled: every photo predicted by a model that never saw it
    leakage         the price of leakage; is a test photo in training?
    answering       above which confidence the model may answer alone; sets of classes
    label_errors    which labels are doubtful
    shortcut_findings  does a network look at the object? numbers and sentences
    validation      metrics.json: a run on its validation photos, beside the baselines
    matching        which photos of two tables are the same
    prediction_tables  predictions of a run, or of any program's CSV, as a checked table
    compare         two runs, or any two CSVs of predictions: matched, tested
    study           a sweep's runs as a table
    ranking         in which order the runs of a sweep stand
    outcomes        what each run of a sweep predicts, photo by photo
    effects         what each setting did: paired effects, interactions, costs
    split_summary   the answer of 01
    sweep_answers   the answers of 07 and 08, and the files that hold them
    learning_curve  what more photos would bring
    wording         the numbers of this room in sentences
    effects_wording  the same for what settings did
    run_wording     those of a run's class shares, confidence, and answering alone
"""
