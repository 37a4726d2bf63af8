"""`tools/export_onnx.py` as a user runs it. What it writes is tested in `tests/export/test_onnx.py`."""


def test_bad_input(run_tool, trained, tmp_path):
    good = trained / 'mask_rcnn_grc_pvt.py', trained / 'epoch_2.pth'
    for arguments, message in (
        (('configs/more/dino_grc_swin.py', good[1]), 'model is a DINO, which cannot be exported'),
        ((good[0], tmp_path / 'none.pth'), f'there is no checkpoint {tmp_path}/none.pth'),
        (('configs/nothing.py', good[1]), 'there is no config configs/nothing.py'),
        ((*good, '--out', tmp_path), f'{tmp_path} is a folder'),
        ((*good, '--out', good[1] / 'detector.onnx'), f'{good[1]}/detector.onnx cannot be written'),
        ((*good, '--cfg-options', 'model.test_cfg.rcnn.nms.type=soft_nms'), "the export supports type='nms'"),
    ):
        out = () if '--out' in arguments else ('--out', tmp_path / 'detector.onnx')
        result = run_tool('export_onnx', *arguments, *out)
        assert result.returncode == 1
        error = result.stderr.splitlines()[-1]
        assert error.startswith('export_onnx: ')
        assert message in error
        assert 'Traceback' not in result.stderr
    assert not list(tmp_path.iterdir())
