_base_ = 'mmdet::_base_/default_runtime.py'

# Registers the GRC backbones wherever the config is loaded, a dumped one in a work dir too.
custom_imports = dict(imports=['mmgrc'], allow_failed_imports=False)

# The memory of each layer, in the logs beside the losses. Not in custom_hooks: a config with hooks of its own keeps it.
default_hooks = dict(grc_monitor=dict(type='GRCMonitorHook', interval=50))
