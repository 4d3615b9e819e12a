import type { Written } from './findings.js'
import { describeIssue, issuesOf, type NestedSetting } from './nested-faults.js'
import { keepNames, ruleNames } from './retention.js'

const nested: NestedSetting = {
  namesAt: (path) => (path.includes('keep') ? keepNames : ruleNames),
  unshown: [],
}

/** What is wrong with a list of rules, part by part. */
export function faultsOfRules(written: Written): readonly string[] {
  return issuesOf(written).flatMap((issue) => describeIssue(issue, written, nested))
}
