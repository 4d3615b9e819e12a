import { RegistryError } from '../oci/errors.js'
import type { Exchange } from './exchange.js'

/** Milliseconds for which an answer of the readiness check is used again. */
const checkedFor = 1000

/** What the handlers need. */
export interface HealthHandlerOptions {
  /** Proves that the stores can be read and written. */
  readonly check: () => Promise<void>
  /** Whether the server is on its way down. */
  readonly isDraining: () => boolean
  /** All metrics in the Prometheus text format, of every worker. */
  readonly metrics: () => Promise<{ readonly contentType: string; readonly text: string }>
}

/** What the machines that watch the server ask, and `/v2/` (protocol 2.1). */
export function healthHandlers({ check, isDraining, metrics }: HealthHandlerOptions) {
  let checkedAt = Number.NEGATIVE_INFINITY
  let checking: Promise<void> = Promise.resolve()

  /** Many askers share one check: it costs a write. */
  function checkSometimes(): Promise<void> {
    if (performance.now() - checkedAt > checkedFor) {
      checkedAt = performance.now()
      checking = check()
      checking.catch(() => undefined) // whoever asked hears of it
    }
    return checking
  }

  return {
    async getBase(exchange: Exchange): Promise<void> {
      exchange.sendJson({})
    },

    async getHealth(exchange: Exchange): Promise<void> {
      exchange.sendJson({ status: 'alive' })
    },

    async getReadiness(exchange: Exchange): Promise<void> {
      if (isDraining()) throw new RegistryError('UNAVAILABLE', 'the registry is shutting down')
      await checkSometimes()
      exchange.sendJson({ status: 'ready' })
    },

    async getMetrics(exchange: Exchange): Promise<void> {
      await exchange.room()
      const { contentType, text } = await metrics()
      exchange.sendBytes(200, Buffer.from(text), { 'Content-Type': contentType })
    },
  }
}
