"""The online half: clicks in, ranked candidates out, over HTTP."""
