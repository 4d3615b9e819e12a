import type {
  CandidatePage,
  CollectionStore,
  IdleLink,
  LinkKey,
  Moments,
} from '../../storage/collection-store.js'
import type { TagStore } from '../../storage/tag-store.js'
import { type CollectionReport, emptyReport, reportOf } from './gc.js'
import { type CollectionMoments, type GarbageOptions, groupByMoment, momentsOf } from './gc-moments.js'
import { livedSince } from './lived-time.js'

/** Rows that are read at once. */
const pageSize = 500

/** Manifests that may name one blob; with more of them it counts as kept. */
const mostNaming = 1000

/**
 * What a collection would remove now. Changes nothing, and sees what others do meanwhile.
 * @throws RegistryError UNAVAILABLE
 */
export async function previewCollection(
  {
    collection,
    tags,
  }: { readonly collection: CollectionStore; readonly tags: Pick<TagStore, 'listRunning'> },
  options: GarbageOptions,
): Promise<CollectionReport> {
  const begin = performance.now()
  const report = emptyReport()
  const running = await tags.listRunning()
  const now = Date.now()
  const moments = momentsOf(options, (length) => livedSince(now, length, running))
  const doomed = new Set<number>()
  await findManifests(collection, moments, { doomed, report })
  await findLinks(collection, moments.links, { doomed, report })
  const unlinked = pages((after: number | undefined) =>
    collection.listUnlinkedBlobs(after ?? 0, moments.blobs, pageSize),
  )
  for await (const { size } of unlinked) addBlob(report, size)
  report.milliseconds = performance.now() - begin
  return report
}

interface Findings {
  /** Manifests that would go. */
  readonly doomed: Set<number>
  readonly report: CollectionReport
}

async function findManifests(
  collection: CollectionStore,
  moments: CollectionMoments,
  { doomed, report }: Findings,
): Promise<void> {
  const { manifests: latest, undo } = moments
  if (latest === undefined) return
  const idle = pages((after: number | undefined) =>
    collection.listIdleManifests(after ?? 0, latest, pageSize),
  )
  for await (const candidate of idle) {
    for (const [before, [at = 0]] of groupByMoment([candidate], moments)) {
      if (doomed.has(at)) continue
      for (const { id, repository } of await collection.previewRemoval(at, { before, undo })) {
        if (doomed.has(id)) continue
        doomed.add(id)
        reportOf(report, repository).manifests++
      }
    }
  }
}

async function findLinks(
  collection: CollectionStore,
  moments: Moments,
  { doomed, report }: Findings,
): Promise<void> {
  const named = doomed.size > 0 ? 'named' : undefined
  const links = pages((after: LinkKey | undefined) =>
    collection.listIdleLinks(after, moments, pageSize, named),
  )
  const left = new Map<number, number>()
  for await (const link of links) {
    if (named !== undefined && !(await isNamedByDoomed(collection, link, doomed))) continue
    const { blobId, repository, size } = link
    const one = reportOf(report, repository)
    one.blobs++
    one.bytes += size
    const others = (left.get(blobId) ?? (await collection.countLinks(blobId))) - 1
    left.set(blobId, others)
    if (others === 0) addBlob(report, size)
  }
}

async function isNamedByDoomed(
  collection: CollectionStore,
  link: IdleLink,
  doomed: ReadonlySet<number>,
): Promise<boolean> {
  const naming = await collection.listNamingManifests(link, mostNaming)
  return naming.length < mostNaming && naming.every((id) => doomed.has(id))
}

function addBlob(report: CollectionReport, size: number): void {
  report.blobs++
  report.bytes += size
}

/** All items of a walk. */
async function* pages<Item, Position>(
  list: (after: Position | undefined) => Promise<CandidatePage<Item, Position>>,
): AsyncGenerator<Item> {
  let after: Position | undefined
  do {
    const page = await list(after)
    yield* page.items
    after = page.next
  } while (after !== undefined)
}
