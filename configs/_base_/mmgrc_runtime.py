# What every config of mmgrc runs with, under one key for the reason that coco_root.py gives.
mmgrc_runtime = dict(
    # Registers the GRC backbones wherever the config is loaded, a dumped one in a work dir too.
    custom_imports=dict(imports=['mmgrc'], allow_failed_imports=False),
    # A checkpoint is whole or not there; a resumed run equals the uninterrupted one; SIGUSR1 stops a run with a
    # checkpoint; the memory of each layer is logged beside the losses. They stand here and not in custom_hooks, so that a
    # config with custom hooks of its own does not lose them.
    default_hooks=dict(
        checkpoint=dict(type='AtomicCheckpointHook'),
        data_error=dict(type='DataErrorHook'),
        exact_resume=dict(type='ExactResumeHook'),
        stop_signal=dict(type='StopSignalHook'),
        grc_monitor=dict(type='GRCMonitorHook', interval=50)))
