"""The dataset in a cell: images brought in, checked, cropped, prepared."""
