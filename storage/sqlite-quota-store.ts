import type { Database, Statement } from 'better-sqlite3'
import type { RepositoryName } from '../src/oci/reference.js'
import type { Quota, QuotaStore, QuotaUse, Reservation } from './quota-store.js'
import { quotaColumns } from './sqlite-quota-operations.js'
import type { Writer } from './sqlite-writer-client.js'

/** See {@link QuotaStore} for what each method promises. */
export class SqliteQuotaStore implements QuotaStore {
  readonly #writer: Writer
  readonly #list: Statement<[], QuotaUse>
  readonly #isLimited: Statement<[string]>

  constructor(db: Database, writer: Writer) {
    this.#writer = writer
    this.#list = db.prepare<[], QuotaUse>(`SELECT ${quotaColumns} FROM quota ORDER BY pattern`)
    this.#isLimited = db.prepare('SELECT 1 FROM quota_repository WHERE repository = ? LIMIT 1')
  }

  setQuotas(quotas: readonly Quota[]): Promise<void> {
    return this.#writer.run('setQuotas', quotas)
  }

  async listQuotas(): Promise<QuotaUse[]> {
    try {
      return this.#list.all()
    } catch (error) {
      throw this.#writer.failureOf(error)
    }
  }

  async isLimited(repository: RepositoryName): Promise<boolean> {
    try {
      return this.#isLimited.get(repository) !== undefined
    } catch (error) {
      throw this.#writer.failureOf(error)
    }
  }

  reserve(id: string, holder: string, end: number): Promise<Reservation> {
    return this.#writer.run('reserve', id, holder, end)
  }
}
