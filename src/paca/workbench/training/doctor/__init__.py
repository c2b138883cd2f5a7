"""What would go wrong in a run, found out in seconds before it begins."""

from paca.workbench.training.doctor.examine import examine as examine
from paca.workbench.training.doctor.findings import Finding as Finding
from paca.workbench.training.doctor.findings import refuse_problems as refuse_problems
