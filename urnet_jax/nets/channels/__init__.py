"""Residual networks whose gates skip channels (Bejnordi, Blankevoort and Welling, 1907.06627).

For applications: `architecture.ChannelGated`, which `model.kind = "channel_resnet"` names.
"""
