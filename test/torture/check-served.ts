import { digestOf } from './content.js'
import { describeKey, differs, type Expectation, type Value } from './model.js'
import { type Answer, Wire } from './wire.js'

/** Requests that run at once. */
const lanes = 8

/** What a running server must show. */
export interface ServedOptions {
  readonly port: number
  /** For each repository everything that may be there, and, as far as wanted, what is not there. */
  readonly expectations: readonly Expectation[]
  /** Numbers that the metrics must show; left out where they are not known. */
  readonly totals?: { readonly blobs: number; readonly bytes: number }
  /** Lists of referrers that must be exactly so. */
  readonly referrers?: readonly Referrers[]
}

/** The manifests of a repository that name a subject. */
export interface Referrers {
  readonly repository: string
  readonly subject: string
  readonly digests: ReadonlySet<string>
}

type Check = (wire: Wire) => Promise<readonly string[]>

/**
 * I1, I2, I5, I8, I10 over HTTP: whether a server that nobody writes to shows all that it must and nothing
 * else, hash for hash.
 * @returns a sentence for each violation
 */
export async function checkServed(options: ServedOptions): Promise<string[]> {
  const checks: Check[] = [
    ...options.expectations.map(
      (expectation): Check =>
        (wire) =>
          checkOne(wire, expectation),
    ),
    ...tagsByRepository(options.expectations).map(
      ([name, tags]): Check =>
        (wire) =>
          checkTagList(wire, name, tags),
    ),
    ...(options.referrers ?? []).map(
      (referrers): Check =>
        (wire) =>
          checkReferrers(wire, referrers),
    ),
    (wire) => checkCatalog(wire, options.expectations),
    (wire) => checkMetrics(wire, options.totals),
  ]
  const violations: string[] = []
  const queue = checks.values()
  await Promise.all(
    Array.from({ length: lanes }, async () => {
      const wire = new Wire(options.port)
      for (const check of queue) violations.push(...(await check(wire)))
      wire.close()
    }),
  )
  return violations
}

async function checkOne(wire: Wire, expectation: Expectation): Promise<string[]> {
  const { kind, repository, name, legal } = expectation
  const path = `/v2/${repository}/${kind === 'blob' ? 'blobs' : 'manifests'}/${name}`
  const seen = readContent(expectation, await wire.send({ method: 'GET', path }))
  if ('problem' in seen) return [`I1 ${describeKey(expectation)}: ${seen.problem}`]
  return legal.has(seen.value) ? [] : [differs(expectation, seen.value, legal)]
}

/** What an answer to GET says of a key, or what is wrong with the answer. */
export function readContent(
  { kind, name }: Pick<Expectation, 'kind' | 'name'>,
  answer: Answer,
): { readonly value: Value } | { readonly problem: string } {
  if (typeof answer === 'string') return { problem: `no answer to GET (${answer})` }
  const { status, headers, body } = answer.reply
  if (status === 404) return { value: undefined }
  if (status !== 200) return { problem: `GET is answered with ${status}` }
  const digest = String(headers['docker-content-digest'])
  if (Number(headers['content-length']) !== body.length) return { problem: 'GET gives another length' }
  if (!/^sha(?:256|512):/.test(digest) || digestOf(body, digest.split(':', 1)[0]) !== digest) {
    return { problem: `GET gives bytes that are not ${digest}` }
  }
  if (kind === 'tag') return { value: digest }
  return digest === name ? { value: 'present' } : { problem: `GET gives ${digest}` }
}

function tagsByRepository(expectations: readonly Expectation[]): [string, Expectation[]][] {
  const tags = new Map<string, Expectation[]>()
  for (const expectation of expectations) {
    const list = tags.get(expectation.repository) ?? []
    tags.set(expectation.repository, list)
    if (expectation.kind === 'tag') list.push(expectation)
  }
  return [...tags]
}

async function checkTagList(wire: Wire, repository: string, tags: readonly Expectation[]): Promise<string[]> {
  const path = `/v2/${repository}/tags/list`
  const list = await readList<{ tags: string[] }>(wire, path)
  if (list === 'bad') return [`I1 GET ${path} gives no list`]
  return compareList(
    `the tags of ${repository}`,
    list === 'nothing' ? [] : list.tags,
    new Map(tags.map(({ name, legal }) => [name, legal])),
  )
}

async function checkCatalog(wire: Wire, expectations: readonly Expectation[]): Promise<string[]> {
  const list = await readList<{ repositories: string[] }>(wire, '/v2/_catalog')
  if (typeof list === 'string') return ['I1 GET /v2/_catalog gives no list']
  const certain = new Set<string>()
  const possible = new Set<string>()
  for (const { kind, repository, legal } of expectations) {
    if (kind !== 'manifest') continue
    if (legal.has('present')) possible.add(repository)
    if (!legal.has(undefined)) certain.add(repository)
  }
  const legal = [...possible].map((name): [string, Set<Value>] => [
    name,
    new Set(certain.has(name) ? ['present'] : ['present', undefined]),
  ])
  return compareList('the catalog', list.repositories, new Map(legal))
}

/** A list must hold all that must be there, and nothing that cannot be there. */
function compareList(
  what: string,
  found: readonly string[],
  legal: ReadonlyMap<string, ReadonlySet<Value>>,
): string[] {
  const violations = found
    .filter((name) => [...(legal.get(name) ?? [])].every((value) => value === undefined))
    .map((name) => `I5 ${what} name ${name}, which is not there`)
  const names = new Set(found)
  for (const [name, values] of legal) {
    if (!values.has(undefined) && !names.has(name)) violations.push(`I1 ${what} lack ${name}`)
  }
  return violations
}

async function readList<T>(wire: Wire, path: string): Promise<T | 'nothing' | 'bad'> {
  const answer = await wire.send({ method: 'GET', path })
  if (typeof answer === 'string') return 'bad'
  if (answer.reply.status === 404) return 'nothing'
  return answer.reply.status === 200 ? (JSON.parse(answer.reply.body.toString()) as T) : 'bad'
}

async function checkReferrers(wire: Wire, referrers: Referrers): Promise<string[]> {
  const { repository, subject, digests } = referrers
  const list = await readList<{ manifests: { digest: string }[] }>(
    wire,
    `/v2/${repository}/referrers/${subject}`,
  )
  const found = typeof list === 'string' ? new Set<string>() : new Set(list.manifests.map((m) => m.digest))
  if (found.size === digests.size && [...digests].every((digest) => found.has(digest))) return []
  return [`I1 referrers of ${repository}@${subject} are ${found.size} in place of ${digests.size}, or others`]
}

/** I10. */
async function checkMetrics(wire: Wire, totals: ServedOptions['totals']): Promise<string[]> {
  if (totals === undefined) return []
  const expected = { boathouse_blobs: totals.blobs, boathouse_blob_bytes: totals.bytes }
  const violations: string[] = []
  for (const [name, value] of Object.entries(expected)) {
    const found = await readMetric(wire, name)
    if (found !== value) violations.push(`I10 the metric ${name} is ${found} in place of ${value}`)
  }
  return violations
}

/** The value of a metric without labels; NaN when the server does not give it. */
export async function readMetric(wire: Wire, name: string): Promise<number> {
  const answer = await wire.send({ method: 'GET', path: '/metrics' })
  const text = typeof answer === 'string' ? '' : answer.reply.body.toString()
  return Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(text)?.[1])
}
