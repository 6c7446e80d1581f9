#!/usr/bin/env bash
# Makes docs/views.png from scikit-learn's two photographs: bash docs/views.sh [--set KEY=VALUE ...]
# Needs `pip install -e '.[demo]'`, and a network for timm's weights unless --set teacher.checkpoint=FILE names them.
set -euo pipefail
cd "$(dirname "$0")/.."
work=runs/views
photographs=$(python -c 'import pathlib, sklearn.datasets as d; print(pathlib.Path(d.__file__).parent / "images")')
mkdir -p $work/images/n03877845 $work/images/n11939491
cp "$photographs/china.jpg" $work/images/n03877845 # as ImageNet's palace
cp "$photographs/flower.jpg" $work/images/n11939491 # as its daisy
cat >$work/deit.toml <<EOF
workspace = "$work/workspace"
[source]
train = "$work/images"
classes = "imagenet-1k"
[views]
seed = 12
[teacher]
model = "tf_efficientnet_lite0"
batch_size = 32
[labels]
views = 6
EOF
deit-pipeline shard -c $work/deit.toml --address inline
deit-pipeline label-teacher -c $work/deit.toml --address inline "$@"
deit-pipeline inspect views -c $work/deit.toml --sample 0 --views 4 --out docs/views.png "$@"
python -c 'from PIL import Image; Image.open("docs/views.png").quantize(192, dither=0).save("docs/views.png", optimize=True)'
