"""Metrics, confidence intervals, paired tests, calibration and selective prediction.

Imports NumPy and SciPy only, no torch and no data, so that it can be read, tested and used alone:

    outputs          labels and logits of a set of images, and what follows for each image
    classification   the metrics: accuracy, balanced accuracy, precision, recall, F1, ROC AUC, loss, Brier score …
    intervals        intervals of proportions: Wilson, and for images in groups the design effect
    bootstrap        intervals of everything else
    mcnemar          two classifiers on the same images: McNemar's test, Newcombe's interval, Holm's correction
    calibration      temperature scaling and the expected calibration error
    selective        risk, coverage and the threshold below which a model abstains
    multilabel       metrics of images with several labels
    label_calibration  calibration and threshold of each label
    stratification   folds and parts that have their share of each class or label
    assessment       all of these for one model on one split
"""
