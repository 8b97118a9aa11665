"""From raw click logs to a published version; meets serving only in ``model_store``."""
