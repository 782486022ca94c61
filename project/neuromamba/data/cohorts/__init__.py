"""Cohorts: registry, tables of subjects, labels, events, matching, splits."""
