"""The report: a run, a label set or several runs on one page of HTML, made of what is stored."""
