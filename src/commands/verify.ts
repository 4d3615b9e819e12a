import { readRate } from '../../config/values.js'
import { createMender } from '../mending.js'
import { parseRepositoryName, type RepositoryName } from '../oci/reference.js'
import type { VerifyOptions } from '../registry/verify.js'
import { type Finding, problemsLeft, type VerificationReport } from '../registry/verify-report.js'
import { createVerifier } from '../stores.js'
import { type Command, Misuse, note, parse, Refusal, say, sharedUsage } from './command.js'
import { describeProgress, interruptible, showProgress } from './progress.js'
import { type Place, unknownRepository, withPlace } from './store.js'
import { formatBytes, formatJson } from './table.js'

/** Manifests without a tag that are named for one blob. */
const mostShown = 3

/** `boathouse verify` */
export const verify: Command = {
  usage: `Compare every stored byte with its digest, beside a running server too

  boathouse verify                  everything; Ctrl-C stops it, the next one goes on from there
  boathouse verify REPOSITORY...    what these repositories hold

  --rate SIZE     bytes to read a second, or unlimited; unset, what verify.rate says
  --restart       begin anew, whatever was interrupted
  --json          answer in JSON
${sharedUsage}

Altered bytes are moved to quarantine/ in the data folder and never served again; a push of the same image brings them
back, and what a mirror held is fetched from its upstream. Exits with 1 when something stays wrong, or it was interrupted.`,

  async run(args) {
    const { values, positionals } = parse(args, {
      rate: { type: 'string' },
      restart: { type: 'boolean' },
      json: { type: 'boolean' },
    })
    const written = values.rate === undefined ? undefined : readRate(values.rate)
    if (values.rate !== undefined && written === undefined) {
      throw new Misuse('--rate takes bytes a second such as 50MiB (at least 1KiB), or the word unlimited.')
    }
    const repositories = positionals.length === 0 ? 'all' : positionals.map(readName)
    return withPlace(values, async (place) => {
      if (repositories !== 'all') await checkNames(place, repositories)
      const rate = written ?? place.config.verify.rate
      const report = await run(place, { rate, repositories, isAnew: values.restart === true })
      const { blobs, bytes, problems, mended } = report
      place.audit('verified', { blobs, bytes, problems, mended })
      if (values.json === true) say(formatJson(toJson(report)))
      else tell(report)
      return problemsLeft(report) > 0 || report.isInterrupted ? 1 : 0
    })
  },
}

function readName(text: string): RepositoryName {
  try {
    return parseRepositoryName(text)
  } catch {
    throw new Misuse('After verify stand names of repositories such as team/app, or nothing.')
  }
}

/** A name that was typed wrong must not look as if all were well. @throws Refusal */
async function checkNames({ stores }: Place, names: readonly RepositoryName[]): Promise<void> {
  for (const name of names) {
    if (await stores.metadata.hasRepository(name)) continue
    const { blobs } = await stores.integrity.countBlobs(0, [name])
    if (blobs === 0) throw unknownRepository(name)
  }
}

async function run(place: Place, options: VerifyOptions): Promise<VerificationReport> {
  const verifier = createVerifier(place.stores, `command-${process.pid}`)
  const mender = createMender(place.config, place.stores, {
    processName: undefined,
    onError: (error, what) => note(`${what}: ${error instanceof Error ? error.message : String(error)}`),
  })
  const progress = showProgress()
  const begin = performance.now()
  try {
    const report = await interruptible((signal) =>
      verifier.verify({
        ...options,
        mender,
        signal,
        onProgress: ({ bytesNow, problems }, all) =>
          progress.show(() => {
            const found = problems === 0 ? '' : `, ${problems} problems`
            return `verified ${describeProgress(bytesNow, all, performance.now() - begin)}${found}`
          }),
      }),
    )
    if (report === undefined) throw new Refusal('Another verification is at work: wait for its end.')
    return report
  } finally {
    progress.end()
    await mender?.close()
  }
}

function toJson(report: VerificationReport) {
  const { isInterrupted, bytesNow, milliseconds, ...rest } = report
  return { interrupted: isInterrupted, ...rest, milliseconds: Math.round(milliseconds) }
}

function tell(report: VerificationReport): void {
  for (const finding of report.findings) say(describeFinding(finding))
  if (report.problems > report.findings.length) {
    say(`and ${report.problems - report.findings.length} more`)
  }
  for (const fault of report.indexFaults) {
    say(`index: ${fault}: stop the server, then "boathouse restore --index" goes back to a sound copy`)
  }
  const { blobs, bytes, manifests, mended, unneeded, healed, orphans, orphanBytes } = report
  const left = problemsLeft(report)
  say(
    [
      `Verified ${blobs} blobs, ${formatBytes(bytes)}, and ${manifests} manifests: `,
      left === 0 ? 'all is well' : `${left} not as it should be`,
      mended === 0 ? '' : `, ${mended} came from a mirror's upstream again`,
      unneeded === 0 ? '' : `, ${unneeded} damaged that nothing needs`,
      healed === 0 ? '' : `, ${healed} are right again`,
      '.',
    ].join(''),
  )
  if (report.isInterrupted) note('Interrupted: the next verification goes on from here.')
  if (orphans > 0) {
    note(
      `${orphans} files with ${formatBytes(orphanBytes)} are unknown to the index: "boathouse gc" sees to them.`,
    )
  }
}

/** One line: what is wrong with what, which tags suffer, and what becomes of it. */
export function describeFinding(finding: Finding): string {
  const { problem, what, digest, how, tags, repository, manifests } = finding
  const place = repository === undefined ? '' : ` of ${repository}`
  const names = tags.map(({ repository: name, tag }) => `${name}:${tag}`).join(', ')
  const isLost = problem !== 'unreadable' && !finding.isMended
  const suffering =
    names === ''
      ? `no tag needs it${describeNaming(manifests)}`
      : `${isLost ? 'cannot be pulled whole' : 'needed by'}: ${names}`
  return `${problem}: ${what} ${digest}${place}: ${how}; ${suffering}; ${remedy(finding)}`
}

/** Manifests by which it is needed although no tag leads to them. */
function describeNaming(manifests: Finding['manifests']): string {
  const shown = manifests
    .slice(0, mostShown)
    .map(({ repository, digest, isDeleted }) => `${repository}@${digest}${isDeleted ? ' (deleted)' : ''}`)
  const more = manifests.length > mostShown ? ' and more' : ''
  return shown.length === 0 ? '' : `, but ${shown.join(', ')}${more}`
}

function remedy({ problem, isMended, isUnneeded, mirrors, manifests }: Finding): string {
  if (isUnneeded) return 'nothing needs it: it goes with a garbage collection'
  if (problem !== 'unreadable' && manifests.length > 0 && mirrors.length === 0) {
    return manifests.some(({ isDeleted }) => !isDeleted)
      ? 'push that again to mend it, or delete it'
      : 'push that again to mend it, or wait: it goes when it cannot be brought back any more'
  }
  if (isMended) return "it came from a mirror's upstream again"
  if (problem === 'unreadable') return 'nothing was changed: look at the disk and its permissions'
  return mirrors.length > 0 ? `${mirrors.join(', ')} fetches it again when asked` : 'push it again to mend it'
}
