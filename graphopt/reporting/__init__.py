"""What a run did and what came of it: in the terminal, as JSON, as a page of HTML; and progress while it runs.

Takes values and knows nothing of the stages that made them.
"""

from graphopt.reporting.describe import describe, describe_interface
from graphopt.reporting.report import PassRecord, Refusal, Report

__all__ = ["PassRecord", "Refusal", "Report", "describe", "describe_interface"]
