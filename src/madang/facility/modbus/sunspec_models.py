"""The SunSpec models that are understood, as their points in order.

Owns the table. Refuses to know how it is read. Called by `madang.facility.modbus.sunspec`.

After the SunSpec Alliance's Device Information Model Specification and its published model definitions (models 1,
101 to 103, 124, 201 to 204, 211 to 214, 713, 802). Each point is `name:type` or `name:type:scale factor`; a type's
number of registers gives the offset of the next. Types: i16, u16, u32, acc32 (a counter), f32, e16 (enumeration),
b16, b32 (bit fields), sf (scale factor), strN (text of N registers), pad.
"""

_COMMON = """
Mn:str16 Md:str16 Opt:str8 Vr:str8 SN:str16 DA:u16 Pad:pad
"""
_INVERTER = """
A:u16:A_SF AphA:u16:A_SF AphB:u16:A_SF AphC:u16:A_SF A_SF:sf PPVphAB:u16:V_SF PPVphBC:u16:V_SF PPVphCA:u16:V_SF
PhVphA:u16:V_SF PhVphB:u16:V_SF PhVphC:u16:V_SF V_SF:sf W:i16:W_SF W_SF:sf Hz:u16:Hz_SF Hz_SF:sf VA:i16:VA_SF
VA_SF:sf VAr:i16:VAr_SF VAr_SF:sf PF:i16:PF_SF PF_SF:sf WH:acc32:WH_SF WH_SF:sf DCA:u16:DCA_SF DCA_SF:sf
DCV:u16:DCV_SF DCV_SF:sf DCW:i16:DCW_SF DCW_SF:sf TmpCab:i16:Tmp_SF TmpSnk:i16:Tmp_SF TmpTrns:i16:Tmp_SF
TmpOt:i16:Tmp_SF Tmp_SF:sf St:e16 StVnd:e16 Evt1:b32 Evt2:b32 EvtVnd1:b32 EvtVnd2:b32 EvtVnd3:b32 EvtVnd4:b32
"""
_STORAGE_BASIC = """
WChaMax:u16:WChaMax_SF WChaGra:u16:WChaDisChaGra_SF WDisChaGra:u16:WChaDisChaGra_SF StorCtl_Mod:b16
VAChaMax:u16:VAChaMax_SF MinRsvPct:u16:MinRsvPct_SF ChaState:u16:ChaState_SF StorAval:u16:StorAval_SF
InBatV:u16:InBatV_SF ChaSt:e16 OutWRte:i16:InOutWRte_SF InWRte:i16:InOutWRte_SF InOutWRte_WinTms:u16
InOutWRte_RvrtTms:u16 InOutWRte_RmpTms:u16 ChaGriSet:e16 WChaMax_SF:sf WChaDisChaGra_SF:sf VAChaMax_SF:sf
MinRsvPct_SF:sf ChaState_SF:sf StorAval_SF:sf InBatV_SF:sf InOutWRte_SF:sf
"""
_METER = """
A:i16:A_SF AphA:i16:A_SF AphB:i16:A_SF AphC:i16:A_SF A_SF:sf PhV:i16:V_SF PhVphA:i16:V_SF PhVphB:i16:V_SF
PhVphC:i16:V_SF PPV:i16:V_SF PhVphAB:i16:V_SF PhVphBC:i16:V_SF PhVphCA:i16:V_SF V_SF:sf Hz:i16:Hz_SF Hz_SF:sf
W:i16:W_SF WphA:i16:W_SF WphB:i16:W_SF WphC:i16:W_SF W_SF:sf VA:i16:VA_SF VAphA:i16:VA_SF VAphB:i16:VA_SF
VAphC:i16:VA_SF VA_SF:sf VAR:i16:VAR_SF VARphA:i16:VAR_SF VARphB:i16:VAR_SF VARphC:i16:VAR_SF VAR_SF:sf
PF:i16:PF_SF PFphA:i16:PF_SF PFphB:i16:PF_SF PFphC:i16:PF_SF PF_SF:sf TotWhExp:acc32:TotWh_SF
TotWhExpPhA:acc32:TotWh_SF TotWhExpPhB:acc32:TotWh_SF TotWhExpPhC:acc32:TotWh_SF TotWhImp:acc32:TotWh_SF
TotWhImpPhA:acc32:TotWh_SF TotWhImpPhB:acc32:TotWh_SF TotWhImpPhC:acc32:TotWh_SF TotWh_SF:sf
TotVAhExp:acc32:TotVAh_SF TotVAhExpPhA:acc32:TotVAh_SF TotVAhExpPhB:acc32:TotVAh_SF TotVAhExpPhC:acc32:TotVAh_SF
TotVAhImp:acc32:TotVAh_SF TotVAhImpPhA:acc32:TotVAh_SF TotVAhImpPhB:acc32:TotVAh_SF TotVAhImpPhC:acc32:TotVAh_SF
TotVAh_SF:sf TotVArhImpQ1:acc32:TotVArh_SF TotVArhImpQ1PhA:acc32:TotVArh_SF TotVArhImpQ1PhB:acc32:TotVArh_SF
TotVArhImpQ1PhC:acc32:TotVArh_SF TotVArhImpQ2:acc32:TotVArh_SF TotVArhImpQ2PhA:acc32:TotVArh_SF
TotVArhImpQ2PhB:acc32:TotVArh_SF TotVArhImpQ2PhC:acc32:TotVArh_SF TotVArhExpQ3:acc32:TotVArh_SF
TotVArhExpQ3PhA:acc32:TotVArh_SF TotVArhExpQ3PhB:acc32:TotVArh_SF TotVArhExpQ3PhC:acc32:TotVArh_SF
TotVArhExpQ4:acc32:TotVArh_SF TotVArhExpQ4PhA:acc32:TotVArh_SF TotVArhExpQ4PhB:acc32:TotVArh_SF
TotVArhExpQ4PhC:acc32:TotVArh_SF TotVArh_SF:sf Evt:b32
"""
_METER_FLOAT = """
A:f32 AphA:f32 AphB:f32 AphC:f32 PhV:f32 PhVphA:f32 PhVphB:f32 PhVphC:f32 PPV:f32 PPVphAB:f32 PPVphBC:f32
PPVphCA:f32 Hz:f32 W:f32 WphA:f32 WphB:f32 WphC:f32 VA:f32 VAphA:f32 VAphB:f32 VAphC:f32 VAR:f32 VARphA:f32
VARphB:f32 VARphC:f32 PF:f32 PFphA:f32 PFphB:f32 PFphC:f32 TotWhExp:f32 TotWhExpPhA:f32 TotWhExpPhB:f32
TotWhExpPhC:f32 TotWhImp:f32 TotWhImpPhA:f32 TotWhImpPhB:f32 TotWhImpPhC:f32 TotVAhExp:f32 TotVAhExpPhA:f32
TotVAhExpPhB:f32 TotVAhExpPhC:f32 TotVAhImp:f32 TotVAhImpPhA:f32 TotVAhImpPhB:f32 TotVAhImpPhC:f32
TotVArhImpQ1:f32 TotVArhImpQ1phA:f32 TotVArhImpQ1phB:f32 TotVArhImpQ1phC:f32 TotVArhImpQ2:f32
TotVArhImpQ2phA:f32 TotVArhImpQ2phB:f32 TotVArhImpQ2phC:f32 TotVArhExpQ3:f32 TotVArhExpQ3phA:f32
TotVArhExpQ3phB:f32 TotVArhExpQ3phC:f32 TotVArhExpQ4:f32 TotVArhExpQ4phA:f32 TotVArhExpQ4phB:f32
TotVArhExpQ4phC:f32 Evt:b32
"""
_STORAGE_CAPACITY = """
WHRtg:u16:WH_SF WHAvail:u16:WH_SF SoC:u16:Pct_SF SoH:u16:Pct_SF Sta:e16 WH_SF:sf Pct_SF:sf
"""
_BATTERY = """
AHRtg:u16:AHRtg_SF WHRtg:u16:WHRtg_SF WChaRteMax:u16:WChaDisChaMax_SF WDisChaRteMax:u16:WChaDisChaMax_SF
DisChaRte:u16:DisChaRte_SF SoCMax:u16:SoC_SF SoCMin:u16:SoC_SF SocRsvMax:u16:SoC_SF SoCRsvMin:u16:SoC_SF
SoC:u16:SoC_SF DoD:u16:DoD_SF SoH:u16:SoH_SF NCyc:u32 ChaSt:e16 LocRemCtl:e16 Hb:u16 CtrlHb:u16 AlmRst:u16
Typ:e16 State:e16 StateVnd:e16 WarrDt:u32 Evt1:b32 Evt2:b32 EvtVnd1:b32 EvtVnd2:b32 V:u16:V_SF VMax:u16:V_SF
VMin:u16:V_SF CellVMax:u16:CellV_SF CellVMaxStr:u16 CellVMaxMod:u16 CellVMin:u16:CellV_SF CellVMinStr:u16
CellVMinMod:u16 CellVAvg:u16:CellV_SF A:i16:A_SF AChaMax:u16:AMax_SF ADisChaMax:u16:AMax_SF W:i16:W_SF
ReqInvState:e16 ReqW:i16:W_SF SetOp:e16 SetInvState:e16 AHRtg_SF:sf WHRtg_SF:sf WChaDisChaMax_SF:sf
DisChaRte_SF:sf SoC_SF:sf DoD_SF:sf SoH_SF:sf V_SF:sf CellV_SF:sf A_SF:sf AMax_SF:sf W_SF:sf
"""

MODELS = {
    1: _COMMON,
    101: _INVERTER,
    102: _INVERTER,
    103: _INVERTER,
    124: _STORAGE_BASIC,
    201: _METER.replace(" PhVphAB:", " PPVphAB:").replace(" PhVphBC:", " PPVphBC:").replace(" PhVphCA:", " PPVphCA:"),
    202: _METER,
    203: _METER,
    204: _METER,
    211: _METER_FLOAT,
    212: _METER_FLOAT,
    213: _METER_FLOAT,
    214: _METER_FLOAT,
    713: _STORAGE_CAPACITY,
    802: _BATTERY,
}
"""The points of each model, by its id."""
