/** How a suite is called, and how long it may take to see a mutant, in seconds. */
export interface Hunter {
  /** Below the compiled tests. */
  readonly file: string
  readonly args: readonly string[]
  readonly seconds: number
  /** Whether it needs root and a filesystem of its own. */
  readonly needsPowerCuts?: boolean
  /** Whether it takes `--seed`. Default: true. */
  readonly isSeeded?: boolean
}

const hunters = {
  kill9: { file: 'torture/kill9.js', args: ['--rounds', '60', '--bail'], seconds: 600 },
  powerCuts: {
    file: 'torture/kill9.js',
    args: ['--rounds', '30', '--bail', '--power-cut', 'ext4'],
    seconds: 400,
    needsPowerCuts: true,
  },
  gc: { file: 'torture/gc.js', args: ['--seconds', '10'], seconds: 400 },
  collection: { file: 'stores/collection.test.js', args: [], seconds: 400, isSeeded: false },
  blobStore: { file: 'stores/fs-blob-store.test.js', args: [], seconds: 400, isSeeded: false },
  interleave: { file: 'stores/interleave.test.js', args: [], seconds: 300, isSeeded: false },
  replay: { file: 'torture/replay.js', args: ['--operation', 'push', '--bound', '300'], seconds: 300 },
  upstream: { file: 'torture/upstream.js', args: ['--rounds', '20', '--pulls', '150'], seconds: 600 },
} satisfies Record<string, Hunter>

/** A text of the built product that is replaced: it must be there exactly once. */
export interface Edit {
  /** Below dist. */
  readonly file: string
  readonly from: string
  readonly to: string
}

/** A sabotage of the built product, and who must notice it. */
export interface Mutation {
  readonly name: string
  readonly edits: readonly Edit[]
  readonly hunter: keyof typeof hunters
  /** What the suite must say: that it fails is not enough. */
  readonly says: RegExp
  /** Whether it is one of the few that CI tries. */
  readonly isQuick?: true
}

/** The suite that hunts for a mutation. */
export function hunterOf({ hunter }: Mutation): Hunter {
  return hunters[hunter]
}

const lost = /^round \d+: I[1-6] /m
const failedTest = /^not ok /m

const commitLine = 'await this.#blobs.commit(key.id, digest, complete.size);'
const finishLines = `        if (!(await this.#metadata.finishUpload(key.id, holder, blob, Date.now()))) {
            throw new RegistryError('BLOB_UPLOAD_UNKNOWN');
        }`
const putLine = 'const result = await this.#metadata.putManifest({'
const putAlone = (
  tags: string,
) => `await this.#metadata.putManifest({ ...parsed, repository, digest, bytes, tags: ${tags},
            sparse: this.#options.isSparse(repository), immutable: this.#options.immutableTags(repository),
            condition: push.condition, now: Date.now() });`

/** Each is a mistake that somebody could make in a line, and that would lose images. */
export const mutations: readonly Mutation[] = [
  {
    name: 'bytes are not synced',
    edits: [{ file: 'storage/write-back.js', from: 'await this.#file.datasync();', to: '' }],
    hunter: 'powerCuts',
    says: lost,
    isQuick: true,
  },
  {
    name: 'a sync that failed is tried again',
    edits: [
      {
        file: 'storage/write-back.js',
        from: 'await this.#file.datasync();',
        to: 'await this.#file.datasync().catch(() => this.#file.datasync());',
      },
    ],
    hunter: 'blobStore',
    says: failedTest,
  },
  {
    name: 'a folder that cannot be synced is passed over',
    edits: [
      {
        file: 'storage/directory-sync.js',
        from: 'await opened.sync();',
        to: 'await opened.sync().catch(() => undefined);',
      },
    ],
    hunter: 'blobStore',
    says: failedTest,
  },
  {
    // No power cut on ext4 shows it: its journal is committed as a whole.
    name: 'folders are not synced',
    edits: [{ file: 'storage/directory-sync.js', from: 'await opened.sync();', to: '' }],
    hunter: 'replay',
    says: /^push: power cut after \d+ of \d+ steps, \d+ answers: I6 /m,
  },
  {
    name: 'synchronous=NORMAL',
    edits: [{ file: 'storage/sqlite-writer.js', from: `'FULL' : 'NORMAL'`, to: `'NORMAL' : 'NORMAL'` }],
    hunter: 'powerCuts',
    says: lost,
    isQuick: true,
  },
  {
    name: 'deletes are not synced',
    edits: [
      {
        file: 'storage/sqlite-operations.js',
        from: `'startUpload',`,
        to: `'startUpload', 'deleteTag', 'deleteManifest', 'unlinkBlob',`,
      },
    ],
    hunter: 'powerCuts',
    says: lost,
  },
  {
    name: 'index row before bytes',
    edits: [
      { file: 'src/registry/uploads.js', from: commitLine, to: '' },
      { file: 'src/registry/uploads.js', from: finishLines, to: `${finishLines}\n${commitLine}` },
    ],
    hunter: 'powerCuts',
    says: /^round \d+: I6 /m,
    isQuick: true,
  },
  {
    name: 'rename before the digest is compared',
    edits: [
      { file: 'src/registry/uploads.js', from: commitLine, to: '' },
      {
        file: 'src/registry/uploads.js',
        from: 'if (actual !== digest) {',
        to: `${commitLine} if (actual !== digest) {`,
      },
    ],
    hunter: 'kill9',
    says: /^round \d+: I3 /m,
  },
  {
    name: 'several tags, one transaction each',
    edits: [
      {
        file: 'src/registry/manifests.js',
        from: putLine,
        to: `for (const tag of extraTags) ${putAlone('[tag]')} ${putLine}`,
      },
    ],
    hunter: 'kill9',
    says: lost,
  },
  {
    name: 'manifest and tag in two transactions',
    edits: [{ file: 'src/registry/manifests.js', from: putLine, to: `${putAlone('[]')} ${putLine}` }],
    hunter: 'kill9',
    says: lost,
  },
  {
    name: 'turns are not given back',
    edits: [{ file: 'src/commands/serve.js', from: `await stores.metadata.releaseTurns('');`, to: '' }],
    hunter: 'kill9',
    says: /^round \d+: I9 /m,
  },
  {
    name: 'no second look before a right is taken away',
    edits: [
      {
        file: 'storage/sqlite-collection-operations.js',
        from: `AND linked_at < :before
     AND NOT EXISTS (SELECT 1 FROM manifest_child c JOIN blob b ON b.digest = c.digest
                     WHERE b.id = :blobId AND c.repository_id = :repositoryId)`,
        to: 'AND :before > 0',
      },
    ],
    hunter: 'collection',
    says: failedTest,
    isQuick: true,
  },
  {
    name: 'no second look before a blob is condemned',
    edits: [
      {
        file: 'storage/sqlite-collection-operations.js',
        from: `WHERE digest = :digest AND state = 'live' AND created_at < :before
       AND NOT EXISTS (SELECT 1 FROM blob_link l WHERE l.blob_id = blob.id)`,
        to: `WHERE digest = :digest AND state = 'live' AND :before > 0`,
      },
    ],
    hunter: 'collection',
    says: failedTest,
  },
  {
    name: 'an upload does not wait for a condemned blob',
    edits: [
      {
        file: 'storage/sqlite-upload-operations.js',
        from: 'if (finishing !== undefined && isGoing.get(finishing) !== undefined)',
        to: 'if (isGoing === undefined)',
      },
    ],
    hunter: 'collection',
    says: failedTest,
  },
  {
    name: 'bytes are removed before their row is condemned',
    edits: [
      {
        file: 'src/registry/gc.js',
        from: 'for (let at = 0; at < digests.length && !this.#isStopped(); at += roundSize) {',
        to: 'for (let at = 0; at < digests.length && !this.#isStopped(); at += roundSize) { await this.#blobs.remove(digests);',
      },
    ],
    hunter: 'collection',
    says: failedTest,
  },
  {
    name: 'no lease for who asks whether a blob is there',
    edits: [
      {
        file: 'storage/sqlite-blob-operations.js',
        from: 'renew.run(now, row.repository, row.blob);',
        to: '',
      },
    ],
    hunter: 'interleave',
    says: failedTest,
  },
  {
    name: 'the grace is ignored',
    edits: [
      {
        file: 'src/registry/gc-moments.js',
        from: 'links: { before: since(grace + leaseSlack(grace)), undo }',
        to: 'links: { before: since(0), undo }',
      },
    ],
    hunter: 'gc',
    says: /MANIFEST_BLOB_UNKNOWN|within the grace/,
    isQuick: true,
  },
  {
    name: 'children of an index are not marked',
    edits: [
      {
        file: 'storage/sqlite-collection-operations.js',
        from: 'JOIN manifest m ON m.id = c.manifest_id',
        to: 'JOIN manifest m ON m.id = c.manifest_id AND 0',
      },
    ],
    hunter: 'collection',
    says: failedTest,
  },
  {
    name: 'referrers are not marked',
    edits: [
      {
        file: 'storage/sqlite-collection-operations.js',
        from: 'AND m.digest = above.subject',
        to: 'AND m.digest = above.subject AND 0',
      },
    ],
    hunter: 'collection',
    says: failedTest,
  },
  {
    name: 'a mirror keeps what it did not compare',
    edits: [
      { file: 'src/mirror/fill.js', from: 'if (actual !== digest) {', to: 'if (actual === undefined) {' },
    ],
    hunter: 'upstream',
    says: /I3|other bytes/,
  },
]

/** Nothing is changed but the library below the server, which promises syncs and makes none: power cuts must show it. */
export function eatmydata(library: string): Mutation {
  return {
    name: 'eatmydata (no sync at all)',
    edits: [
      {
        file: 'test/torture/server.js',
        from: `BOATHOUSE_AUTH: 'none',`,
        to: `BOATHOUSE_AUTH: 'none', LD_PRELOAD: '${library}',`,
      },
    ],
    hunter: 'powerCuts',
    says: lost,
  }
}
