import type { Exchange } from './exchange.js'

/** What the audit log tells of: one line each, with who and from where. */
export type AuditEvent = 'token' | 'delete'

/** Writes one line. It must hold no secret. */
export type Audit = (exchange: Exchange, event: AuditEvent, about: Readonly<Record<string, string>>) => void
