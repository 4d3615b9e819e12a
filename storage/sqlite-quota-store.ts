import type { Database, Statement } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import type { Quota, QuotaExcess, QuotaStore, QuotaUse, Reservation } from './quota-store.js'
import { quotaColumns, quotasOfRepository } from './sqlite-quota-operations.js'
import type { Writer } from './sqlite-writer-client.js'

/** See {@link QuotaStore} for what each method promises. */
export class SqliteQuotaStore implements QuotaStore {
  readonly #writer: Writer
  readonly #list: Statement<[], QuotaUse>
  readonly #ofRepository: Statement<[string], QuotaUse>
  readonly #isMember: Statement<[string]>
  readonly #isLinked: Statement<[string, string]>

  constructor(db: Database, writer: Writer) {
    this.#writer = writer
    this.#list = db.prepare<[], QuotaUse>(`SELECT ${quotaColumns} FROM quota ORDER BY pattern`)
    this.#ofRepository = db.prepare<[string], QuotaUse>(quotasOfRepository)
    this.#isMember = db.prepare('SELECT 1 FROM quota_repository WHERE repository = ?')
    this.#isLinked = db.prepare(
      `SELECT 1 FROM blob b JOIN blob_link l ON l.blob_id = b.id JOIN repository r ON r.id = l.repository_id
       WHERE b.digest = ? AND r.name = ?`,
    )
  }

  setQuotas(quotas: readonly Quota[]): Promise<void> {
    return this.#writer.run('setQuotas', quotas)
  }

  #read<T>(query: () => T): T {
    try {
      return query()
    } catch (error) {
      throw this.#writer.failureOf(error)
    }
  }

  async listQuotas(): Promise<QuotaUse[]> {
    return this.#read(() => this.#list.all())
  }

  async isLimited(repository: RepositoryName): Promise<boolean> {
    return this.#read(() => this.#isMember.get(repository)) !== undefined
  }

  reserve(id: string, holder: string, end: number): Promise<Reservation> {
    return this.#writer.run('reserve', id, holder, end)
  }

  async findOverrun(repository: RepositoryName, digest: Digest): Promise<QuotaExcess | undefined> {
    return this.#read(() => {
      const over = this.#ofRepository.all(repository).find(({ limit, used }) => used > limit)
      if (over === undefined || this.#isLinked.get(digest, repository) !== undefined) return undefined
      return { ...over, lack: 'bytes' }
    })
  }
}
