"""How well are subjects kept? Prompts, their pictures with and without the method, the judge's measures, intervals."""
