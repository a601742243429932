"""Feature-level attacks: objectives on what surrogates compute inside. One file for each method.

A surrogate is tapped at a layer that is chosen by depth (`advens.attacks.layers`). Before a step, a
method may ask it for features, and for gradients with respect to them (`advens.attacks.tap`); these
passes are counted.
"""
