"""Program that tunes a retriever of texts by deep prompts in its frozen encoder."""
