def write_evidence(setting, out):
    pass
