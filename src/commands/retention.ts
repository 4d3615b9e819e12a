import { matchesRepository, parseRepositoryPattern } from '../oci/repository-pattern.js'
import type { Verdict } from '../registry/retention.js'
import { createRetention } from '../stores.js'
import { type Command, Misuse, parse, Refusal, say, sharedUsage } from './command.js'
import { checkPattern } from './names.js'
import { confirm } from './prompt.js'
import { withPlace } from './store.js'
import { formatJson, formatTable, formatTime } from './table.js'

/** `boathouse retention` */
export const retention: Command = {
  usage: `Retention: tags that no rule of the settings keeps are removed

  boathouse retention --dry-run [PATTERN]    say what would go, and why each other tag stays
  boathouse retention [PATTERN]              remove, in the repositories of a pattern, or in all that have a rule

  --yes           do not ask before
  --json          answer in JSON
${sharedUsage}

The rules are retention.rules of the server's settings, and the server follows them by itself by retention.schedule.
"boathouse tag restore" brings a tag back; garbage collection removes what no tag leads to any more.`,

  async run(args) {
    const { values, positionals } = parse(args, {
      'dry-run': { type: 'boolean' },
      json: { type: 'boolean' },
      yes: { type: 'boolean' },
    })
    const [pattern = '**', ...more] = positionals
    if (more.length > 0) throw new Misuse('There are words after the repository pattern.')
    checkPattern(pattern)
    const isDry = values['dry-run'] === true
    return withPlace(values, async ({ config, stores, audit }) => {
      if (config.retention.rules.length === 0) {
        throw new Refusal(
          'There are no rules: write retention.rules into the settings, and name them with --config.',
        )
      }
      const work = createRetention(config, stores)
      const only = parseRepositoryPattern(pattern)
      const found: { repository: Parameters<typeof work.judge>[0]; verdicts: Verdict[] }[] = []
      for await (const repository of work.repositories()) {
        if (!matchesRepository(only, repository)) continue
        found.push({ repository, verdicts: await work.judge(repository) })
      }
      if (found.length === 0 && !pattern.includes('*')) {
        throw new Refusal(
          `No rule is for a repository ${pattern} that has tags: look at its name, and at retention.rules.`,
        )
      }
      const count = found.flatMap(({ verdicts }) => verdicts).filter(({ isKept }) => !isKept).length
      if (values.json !== true) tellVerdicts(found, isDry)
      let removed = 0
      if (!isDry && count > 0) {
        const isSure = values.yes === true || (await confirm(`Remove ${count} tags?`, 'add --yes'))
        if (!isSure) throw new Refusal('Stopped: nothing was changed.')
        for (const { repository, verdicts } of found) {
          const doomed = verdicts.filter(({ isKept }) => !isKept).map(({ facts }) => facts)
          const gone = await work.remove(repository, doomed)
          removed += gone.length
          if (gone.length > 0)
            audit('retention', { repository, count: gone.length, tags: gone.slice(0, 100) })
        }
      }
      if (values.json === true) say(formatJson({ dryRun: isDry, removed, tags: toJson(found) }))
      else say(isDry ? `Would remove ${count} tags.` : `Removed ${removed} tags.`)
      return 0
    })
  },
}

type Found = readonly { readonly repository: string; readonly verdicts: readonly Verdict[] }[]

function tellVerdicts(found: Found, isDry: boolean): void {
  const rows = found.flatMap(({ repository, verdicts }) =>
    verdicts
      .filter(({ isKept }) => isDry || !isKept)
      .map(({ facts, isKept, why }) => [
        `${repository}:${facts.tag}`,
        isKept ? 'stays' : 'goes',
        formatTime(facts.pushedAt, '-'),
        facts.pulledAt === 0 ? '-' : formatTime(facts.pulledAt, '-'),
        why,
      ]),
  )
  if (rows.length > 0) say(formatTable(['TAG', 'WHAT', 'PUSHED', 'PULLED', 'WHY'], rows))
}

function toJson(found: Found) {
  return found.flatMap(({ repository, verdicts }) =>
    verdicts.map(({ facts: { tag, digest, pushedAt, pulledAt }, isKept, why }) => ({
      repository,
      tag,
      digest,
      kept: isKept,
      why,
      pushed: formatTime(pushedAt, ''),
      pulled: pulledAt === 0 ? null : formatTime(pulledAt, ''),
    })),
  )
}
