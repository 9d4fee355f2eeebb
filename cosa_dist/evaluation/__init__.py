"""Evaluation: confusion matrices, named protocols, the evaluator, its report and its pictures."""
