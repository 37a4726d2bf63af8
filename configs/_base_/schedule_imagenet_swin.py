_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'

# The parent is Swin's recipe: 300 epochs, AdamW 1e-3 for 1024 images, weight decay 0.05, 20 epochs of warm-up, and a cosine
# that ends at 1e-5. No weight decay on norms, biases, position and bias tables, which the parent has, and on λ: it is a
# logit, and weight decay would pull σ(λ) to 0.5.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.pos_embed': dict(decay_mult=0.0), 'grc.lam': dict(decay_mult=0.0)}),
    clip_grad=dict(max_norm=5.0))

# 8 GPUs x 128 images.
auto_scale_lr = dict(enable=False, base_batch_size=1024)
