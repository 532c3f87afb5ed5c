"""Examples into batches.

What application code may use:

- `sources.open_split(config.data, "test")` opens a split, a `splits.Split`;
- `splits.examples`, `splits.take` and `splits.places` take examples out of one and find them again;
- `batches.train_batches` and `batches.eval_batches` give its batches;
- `prepare.prepare` makes a dataset of a folder of images and label maps;
- `augment.normalize` and `augment.normalization` make of pixels what a network sees;
- `decode.decode_eval` makes pixels of an image file, as evaluation does.
"""
