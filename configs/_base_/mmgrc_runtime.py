# Settings of every mmgrc config, under one key. coco_root.py gives the reason.
mmgrc_runtime = dict(
    # Registers the GRC backbones wherever the config is loaded, also from a work dir.
    custom_imports=dict(imports=['mmgrc'], allow_failed_imports=False),
    # Checkpoints are written atomically. A resumed run equals the uninterrupted one. SIGUSR1 stops a run with a
    # checkpoint. The memory of each layer is logged with the losses. A terminal shows the progress. The hooks are here
    # instead of in custom_hooks, so that a config with its own custom hooks does not lose them.
    default_hooks=dict(
        checkpoint=dict(type='AtomicCheckpointHook'),
        data_error=dict(type='DataErrorHook'),
        exact_resume=dict(type='ExactResumeHook'),
        stop_signal=dict(type='StopSignalHook'),
        grc_monitor=dict(type='GRCMonitorHook', interval=50),
        progress=dict(type='ProgressHook')))
