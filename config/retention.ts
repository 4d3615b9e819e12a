import { validRange } from 'semver'
import { z } from 'zod'
import { readSchedule, readTagPattern } from './mirror-values.js'
import { duration, listOf, patterns, readDuration, readJson, readWhole, word } from './values.js'

/** Tags that stay: those for which all of it is true. Times are milliseconds. */
export interface KeepClause {
  /** Patterns, of which one must fit. */
  readonly tags?: readonly string[] | undefined
  /** A range of versions. */
  readonly versions?: string | undefined
  readonly pushedWithin?: number | undefined
  readonly pulledWithin?: number | undefined
  /** Of the tags that all the rest is true for, so many that were pushed last. */
  readonly newest?: number | undefined
}

/** What stays in some repositories. */
export interface RetentionRule {
  readonly repositories: readonly string[]
  readonly keep: readonly KeepClause[]
}

const keepHint =
  'write what to keep: a list of newest, tags, versions, pushedWithin and pulledWithin, each entry with at least one'
const rulesHint = 'write a list of rules, each with repositories and keep, or one as JSON in the variable'

const clause = z
  .strictObject(
    {
      newest: word('write a number from 1 to 100000', (text) => readWhole(text, 1, 100_000)).optional(),
      tags: listOf('write tags such as latest, or patterns such as v*', readTagPattern)
        .refine((tags) => tags.length > 0, { error: 'write at least one tag or pattern' })
        .optional(),
      versions: word('write a range of versions such as >=1.2.0 or ^2', (text) =>
        text.length <= 200 && text !== '' && validRange(text) !== null ? text : undefined,
      ).optional(),
      pushedWithin: duration('1s', '36500d').optional(),
      pulledWithin: duration('1s', '36500d').optional(),
    },
    { error: keepHint },
  )
  .refine((fields) => Object.values(fields).some((value) => value !== undefined), { error: keepHint })

const rule = z.strictObject(
  {
    repositories: patterns().refine((list) => list.length > 0, { error: 'write at least one pattern' }),
    keep: z
      .array(clause, { error: keepHint })
      .min(1, { error: keepHint })
      .max(100, { error: 'write 100 entries at most' }),
  },
  { error: rulesHint },
)

const rules = z.preprocess(
  readJson,
  z.array(rule, { error: rulesHint }).max(1000, { error: 'write 1000 rules at most' }),
)

/** The settings of a rule, and of one entry of its `keep`. */
export const ruleNames = Object.keys(rule.shape)
export const keepNames = Object.keys(clause.shape)

/** Which tags stay, and when the others go. */
export const retention = z
  .strictObject({
    /** Milliseconds between two rounds, or a cron expression. */
    schedule: word(
      'write a cron expression such as 0 4 * * * (minute, hour, day, month, weekday), or a duration such as 12h',
      (text): number | string | undefined => readDuration(text, '1s', '24d') ?? readSchedule(text),
    )
      .prefault('0 4 * * *')
      .describe(
        'When the server removes the tags that no rule keeps: a cron expression in local time, or how long it rests ' +
          'between two rounds.',
      ),
    rules: rules
      .prefault([])
      .describe(
        'Which tags stay: a list of rules, each with repositories and keep. The first rule that matches a repository ' +
          'counts, and repositories without one keep all; in the variable as JSON.',
      ),
  })
  .prefault({})
