"""Inputs and output of the verbs that use a saved model: caption, understand, detect, transcribe."""
