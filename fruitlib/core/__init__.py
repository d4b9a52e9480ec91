"""What everybody stands on: the settings of a run, paths and atomic writes, the machine, errors for people.

Read `config` first: every setting with its type, range, default and help.

    config       Config: every setting of a run; which settings belong to which stage
    setting_errors  how a refused setting is named: its value, what is wanted, the nearest known name
    idle_settings   settings that change nothing, given the others
    yaml_files   YAML that people wrote, within limits; the line of every setting
    parameters   settings as a notebook's parameters cell has them
    texts        names as people type them: the same text in one form; safe to print
    files        paths, atomic writes, locks, fingerprints
    model_names  the models that can be trained, and their image sizes; timm's by name
    machine      device, threads, seeds, rank, versions
    progress     how far long work is, and how long it still takes
    errors       InputError: one line that says what is wrong, where, and what to do
    source_code  the code that a result depends on: a module with all it imports
"""
