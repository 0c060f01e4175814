"""The embedded demo task, the CIFAR ResNet of the real-data check, and the accuracy of classifiers."""
