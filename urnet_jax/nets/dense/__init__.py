"""Dense prediction: residual networks that say a class for each pixel.

For applications: `architecture.Segmenter` and `architecture.ChannelSegmenter`, which
`model.kind = "segmenter"` and `"channel_segmenter"` name.
"""
